"""Teachers that learn permuted labels: the control of a teacher that knows nothing."""

import numpy as np
import pytest
import torch

from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.stages import Pipeline
from mmdistill.pipeline.studying import train_students
from mmdistill.pipeline.teaching import align_teachers, taught_parts, teacher_outputs, train_teachers
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()
# Four classes told by what is privileged. One permutation can be lucky by .04: the mean over pairs counts.
EASY = {
    "data__options": {"rows": [200, 200, 40], "privileged_only": 2.0, "redundant": 1.5},
    "data__label_fraction": 1.0,
    "teachers__epochs": 8,
    "teachers__out_of_fold": 2,
}
SEEDS = range(6)
CHANCE, LUCK = 0.25, 0.06


def fold_of(run):
    return opened(run.data, run.fold, with_test=False, device="cpu")


def taught(runs, fold):
    teachers = {name: train_teachers(runs, name, fold, HERE) for name in runs[0].networks()}
    aligned = None if runs[0].alignment.kind == "none" else align_teachers(runs, teachers, fold, HERE)
    return teacher_outputs(runs, teachers, aligned, fold)


def accuracies(entries, fold):
    """Return each teacher's mean accuracy over the pairs: on validation rows, and of the copies held out."""
    names = entries[0].facts["teachers"]
    seen = [[entry.facts["metrics"][f"{name}_accuracy"] for name in names] for entry in entries]
    right = [(e.tensors["held_out"].argmax(dim=-1) == fold.train.labels).float().mean(dim=1) for e in entries]
    return np.mean(seen, axis=0), torch.stack(right).mean(dim=0).numpy()


@pytest.mark.parametrize(
    ("recipe", "labels"), [("hinton", "true"), ("hinton", "permuted"), ("mt_pkdot", "permuted")]
)
def test_teachers_of_permuted_labels_are_at_chance_and_so_are_their_copies(run, recipe, labels):
    more = EASY | {"teachers__labels": labels, "alignment__epochs": 5}
    runs = [run(recipe, seed=seed, **more) for seed in SEEDS]
    fold = fold_of(runs[0])
    for mean in accuracies(taught(runs, fold), fold):
        if labels == "true":
            assert mean.min() > CHANCE + 4 * LUCK
        else:
            assert np.abs(mean - CHANCE).max() < LUCK


def test_a_teacher_that_trains_along_learns_them_too_and_the_student_does_not(run):
    more = EASY | {"teachers__training": "joint", "teachers__labels": "permuted", "epochs": 8}
    easy = {"data__options": EASY["data__options"] | {"student_only": 2.0}}
    runs = [run("hinton", seed=seed, **more | easy) for seed in SEEDS]
    metrics = [entry.facts["metrics"] for entry in train_students(runs, None, fold_of(runs[0]), HERE)]
    assert abs(np.mean([found["teacher_accuracy"] for found in metrics]) - CHANCE) < LUCK
    assert np.mean([found["accuracy"] for found in metrics]) > CHANCE + 4 * LUCK


def test_labelled_rows_swap_their_labels_and_no_other_row_does(run):
    one = run("hinton", teachers__labels="permuted", data__label_fraction=0.5)
    fold = fold_of(one)
    labelled = fold.labelled(0.5, one.seed)
    source, validation = fold.permuted(0.5, one.seed)
    assert sorted(source) == list(range(len(source)))
    assert set(source[labelled]) == set(np.flatnonzero(labelled))
    assert (source == np.arange(len(source)))[~labelled].all()
    assert (source != np.arange(len(source)))[labelled].mean() > 0.8
    assert sorted(validation) == list(range(len(fold.validation)))


def test_the_permutation_belongs_to_the_pair(run):
    runs = [run("hinton", teachers__labels="permuted", seed=seed) for seed in (5, 6, 5)]
    fold = fold_of(runs[0])
    for part, plain in zip(taught_parts(runs, fold, copies=2), (fold.train, fold.validation), strict=True):
        sources = part.source_KN
        assert sources.shape == (6, len(plain))
        assert torch.equal(sources[:2], sources[4:])
        assert torch.equal(sources[0], sources[1])
        assert not torch.equal(sources[0], sources[2])
    assert taught_parts([run("hinton")], fold) == (fold.train, fold.validation)


def test_lanes_that_swap_labels_equal_those_trained_alone(run):
    runs = [run("mt_pkdot", teachers__labels="permuted", seed=seed) for seed in (5, 6)]
    fold = fold_of(runs[0])
    together = taught(runs, fold)
    for k, one in enumerate(runs):
        (alone,) = taught([one], fold)
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(together[k].tensors[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["hinton", "mt_pkdot", "amid"])
def test_every_stage_knows_what_the_teachers_learned(run, recipe):
    true, permuted = (
        Pipeline(run(recipe, teachers__labels=labels), "data") for labels in ("true", "permuted")
    )
    assert [a.key == b.key for a, b in zip(true.teachers, permuted.teachers, strict=True)] == [False] * len(
        true.teachers
    )
    assert true.student.key != permuted.student.key
    alone = [
        Pipeline(run("student_only", teachers__labels=labels), "data") for labels in ("true", "permuted")
    ]
    assert alone[0].student.key == alone[1].student.key
