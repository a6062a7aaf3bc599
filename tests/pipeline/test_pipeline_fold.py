"""A fold on the device, its labels, and on what evidence teachers are compared."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.studying import _frozen
from mmdistill.training.objectives import TensorPart
from mmdistill.training.student import Rows


def fold_of(run):
    return opened(run.data, run.fold, with_test=False, device="cpu")


def test_label_rows_depend_on_the_pair_and_not_on_the_arm(run):
    fold = fold_of(run("mt_pkdot"))
    other = fold_of(run("student_only", data__privileged=[], data__label_fraction=0.5))
    assert np.array_equal(fold.labelled(0.5, 5), other.labelled(0.5, 5))
    assert not np.array_equal(fold.labelled(0.5, 5), fold.labelled(0.5, 6))
    assert fold.labelled(0.5, 5).sum() == 60


def test_tensors_are_the_arrays(run):
    fold = fold_of(run())
    assert fold.widths(("face", "audio")) == {"face": 16, "audio": 16}
    assert (fold.outputs, fold.task) == (4, "classification")
    for name, x in fold.arrays.train.inputs.items():
        assert np.array_equal(fold.train.inputs[name].numpy(), x)


def test_a_missing_label_reads_zero_and_is_never_labelled(run):
    fold = fold_of(run(data__options={"rows": [120, 40, 40], "harmful": 0.5}))
    missing = fold.arrays.train.labels == -1
    assert missing.sum() == 60
    assert (fold.train.labels[torch.from_numpy(missing)] == 0).all()
    assert not (fold.labelled(1.0, 5) & missing).any()


def test_an_opened_fold_stays_in_memory(run):
    assert fold_of(run()) is fold_of(run())
    assert fold_of(run()) is not fold_of(run(data__privileged=["audio"]))


@pytest.mark.parametrize(("evidence", "source"), [("out_of_fold", "held_out"), ("in_sample", "logits")])
def test_teachers_are_compared_by_their_loss_at_each_labelled_row(run, evidence, source):
    one = run("mt_pkdot", selection__evidence=evidence)
    fold = fold_of(one)
    labelled = torch.from_numpy(fold.labelled(0.5, 5))[None]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(3, 120, 4, generator=generator) for name in ("features", "logits", "held_out")
    }
    entry = Entry(tensors, {"teachers": ["audio", "decoy", "joint"]})
    frozen = _frozen([one], [entry], Rows(fold.train, fold.validation, labelled, "classification"))
    p = tensors[source].double().softmax(dim=-1).numpy()
    for m in range(3):
        for n in range(0, 120, 7):
            label = int(fold.train.labels[n])
            expected = log_loss([label], p[m, [n]], labels=range(4)) if labelled[0, n] else 0.0
            assert float(frozen.evidence_KMN[0, m, n]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert frozen.policy == "sample"


def test_in_a_regression_a_batch_may_compare_teachers_by_their_concordance(run):
    by_ccc = {"selection__policy": "batch", "selection__regression": "ccc"}
    drawn = {name: torch.randn(3, 20, 2) for name in ("features", "logits", "held_out")}
    part = TensorPart({"face": torch.zeros(20, 2)}, torch.randn(20, 2))
    rows = Rows(part, part, torch.ones(1, 20, dtype=torch.bool), "regression")
    entry = Entry(drawn, {"teachers": ["audio", "decoy", "joint"]})
    found = _frozen([run("mt_pkdot", **by_ccc)], [entry], rows)
    assert torch.equal(found.judged_KMNC[0], drawn["held_out"])
    assert torch.equal(found.targets_NC, part.labels)
    assert _frozen([run("mt_pkdot", selection__policy="batch")], [entry], rows).judged_KMNC is None
