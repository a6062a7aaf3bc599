"""Teachers, their out-of-fold copies, alignment, and what they say about the training rows."""

import dataclasses

import numpy as np
import pytest
import torch

from mmdistill.models.network import Network
from mmdistill.pipeline.fold import Fold, opened
from mmdistill.pipeline.teaching import Variants, align_teachers, teacher_outputs, train_teachers
from mmdistill.training.objectives import TensorPart, outputs_on
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()


def fold_of(run):
    return opened(run.data, run.fold, with_test=False, device="cpu")


def relabelled(fold, row):
    """Return the fold with another class at a training row, in the arrays and in the tensors."""
    classes = fold.outputs
    labels = fold.arrays.train.labels.copy()
    labels[row] = (labels[row] + 1) % classes
    part = dataclasses.replace(fold.arrays.train, labels=labels)
    arrays = dataclasses.replace(fold.arrays, train=part)
    train = TensorPart(fold.train.inputs, torch.from_numpy(labels).clamp(min=0))
    return Fold(arrays, train, fold.validation, fold.device)


def taught(runs, fold):
    networks = runs[0].networks()
    teachers = {name: train_teachers(runs, name, fold, HERE) for name in networks}
    aligned = None if runs[0].alignment.kind == "none" else align_teachers(runs, teachers, fold, HERE)
    return teacher_outputs(runs, teachers, aligned, fold)


@pytest.fixture
def _same_inner_folds(monkeypatch):
    """Keep the draw of inner folds and label rows, which looks at labels, as it is."""
    monkeypatch.setattr(Fold, "labelled", lambda self, *_: np.arange(len(self.train)) % 4 != 3)

    def held_out(self, labelled, count, seed):
        return np.where(labelled, np.arange(len(labelled)) % count, -1)

    monkeypatch.setattr(Fold, "held_out", held_out)


@pytest.mark.usefixtures("_same_inner_folds")
@pytest.mark.parametrize("alignment", ["none", "adapters"])
def test_held_out_outputs_at_a_row_do_not_depend_on_its_label(run, alignment):
    one = run("mt_pkdot", alignment__kind=alignment)
    fold, row = fold_of(one), 6
    (before,), (after,) = taught([one], fold), taught([one], relabelled(fold, row))
    assert torch.equal(before.tensors["held_out"][:, row], after.tensors["held_out"][:, row])
    # The teacher that saw the row, and the other rows' copies that did, did change.
    assert not torch.equal(before.tensors["logits"][:, row], after.tensors["logits"][:, row])
    elsewhere = [n for n in range(60) if n % 4 != 3 and n % 3 != row % 3]
    assert not torch.equal(before.tensors["held_out"][:, elsewhere], after.tensors["held_out"][:, elsewhere])


@pytest.mark.usefixtures("_same_inner_folds")
def test_a_row_without_a_label_teaches_nothing(run):
    one = run("mt_pkdot")
    fold, row = fold_of(one), 7
    (before,), (after,) = taught([one], fold), taught([one], relabelled(fold, row))
    for name in ("features", "logits", "held_out"):
        assert torch.equal(before.tensors[name], after.tensors[name])
    unlabelled = torch.arange(len(fold.train)) % 4 == 3
    assert torch.equal(before.tensors["held_out"][:, unlabelled], before.tensors["logits"][:, unlabelled])


def test_outputs_are_those_of_the_saved_networks(run):
    one = run("hinton")
    fold = fold_of(one)
    (teacher,) = train_teachers([one], "joint", fold, HERE)
    (entry,) = teacher_outputs([one], {"joint": [teacher]}, None, fold)
    variants = Variants.of([one], fold)
    network = Network(fold.widths(("audio", "decoy", "face")), fold.outputs, one.network, [0] * 4)
    load_lanes(network, [teacher.tensors])
    said = outputs_on(network, fold.train, 4)
    assert torch.equal(entry.tensors["logits"][0], said.logits_KBC[0])
    assert torch.equal(entry.tensors["features"][0], said.features_KBD[0])
    for n in range(len(fold.train)):
        lane = int(variants.inner_N[0][n]) + 1
        assert torch.equal(entry.tensors["held_out"][0, n], said.logits_KBC[lane, n])


def test_each_labelled_row_is_kept_from_exactly_one_copy(run):
    one = run("mt_pkdot")
    fold = fold_of(one)
    variants = Variants.of([one], fold)
    labelled = fold.labelled(one.data.label_fraction, one.seed)
    everything, *copies = [set(rows.tolist()) for rows in variants.rows]
    assert everything == set(np.flatnonzero(labelled).tolist())
    kept_from = [everything - copy for copy in copies]
    assert sum(map(len, kept_from)) == len(everything)
    assert set().union(*kept_from) == everything
    for inner, rows in enumerate(kept_from):
        assert {int(variants.inner_N[0][row]) for row in rows} == {inner}


def test_shapes_and_names_of_what_teachers_say(run):
    one = run("mt_pkdot")
    fold = fold_of(one)
    (entry,) = taught([one], fold)
    rows = len(fold.train)
    assert entry.facts["teachers"] == ["audio", "decoy", "joint"]
    assert entry.tensors["features"].shape == (3, rows, 8)
    assert entry.tensors["logits"].shape == entry.tensors["held_out"].shape == (3, rows, 4)
    assert {"joint_accuracy", "audio_log_loss"} <= set(entry.facts["metrics"])


@pytest.mark.parametrize("recipe", ["hinton", "mt_pkdot"])
def test_teachers_of_a_cohort_equal_those_trained_alone(run, recipe):
    runs = [run(recipe, seed=seed) for seed in (5, 6, 7)]
    fold = fold_of(runs[0])
    together = taught(runs, fold)
    for k, one in enumerate(runs):
        (alone,) = taught([one], fold)
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(together[k].tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_alignment_leaves_the_teachers_alone_and_changes_what_they_say(run):
    aligned, plain = run("mt_pkdot"), run("mt_pkdot", alignment__kind="none")
    fold = fold_of(aligned)
    teachers = {name: train_teachers([aligned], name, fold, HERE) for name in aligned.networks()}
    before = {name: {n: t.clone() for n, t in found[0].tensors.items()} for name, found in teachers.items()}
    entries = align_teachers([aligned], teachers, fold, HERE)
    (with_it,) = teacher_outputs([aligned], teachers, entries, fold)
    (without,) = teacher_outputs([plain], teachers, None, fold)
    for name, found in teachers.items():
        assert all(torch.equal(found[0].tensors[n], before[name][n]) for n in before[name])
    for m in range(3):
        assert not torch.equal(with_it.tensors["features"][m], without.tensors["features"][m])


def test_longer_alignment_brings_the_teachers_closer_together(run):
    def similarity(epochs):
        one = run("mt_pkdot", alignment__epochs=epochs, alignment__weight=0.9, teachers__epochs=5)
        (entry,) = taught([one], fold_of(one))
        audio, decoy, joint = entry.tensors["features"]
        cosine = torch.nn.functional.cosine_similarity
        return float((cosine(audio, joint) + cosine(decoy, joint)).mean())

    assert similarity(20) > similarity(1) + 0.1


def test_teachers_learn(run):
    one = run("hinton", teachers__epochs=30, data__options__rows=[400, 100, 40])
    (teacher,) = train_teachers([one], "joint", fold_of(one), HERE)
    assert teacher.facts["metrics"]["validation_accuracy"] > 0.4
    assert teacher.facts["diverged"] == []


def test_a_teacher_that_diverged_says_so(run):
    one = run("hinton", teachers__learning_rate=1e30)
    (teacher,) = train_teachers([one], "joint", fold_of(one), HERE)
    assert len(teacher.facts["diverged"]) == 4
    assert all(reason.endswith("is not finite at step 1") for reason in teacher.facts["diverged"])
