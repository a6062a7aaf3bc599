"""A student's objective: the task on labelled rows plus weighted terms on every row."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from mmdistill.losses.discrepancy import mmd
from mmdistill.models.hallucinator import Missing
from mmdistill.models.network import Network, NetworkSettings, Outputs
from mmdistill.terms import TERMS, Batch, Shapes
from mmdistill.training.objectives import TensorPart, at_rows, outputs_on
from mmdistill.training.runtime import LocalRuntime
from mmdistill.training.student import LiveTeacher, Rows, StudentObjective
from mmdistill.training.teachers import FrozenTeachers

K, N, C, D = 2, 20, 3, 6
SIZE = NetworkSettings(width=D, depth=1)
ROWS_KB = torch.tensor([[0, 3, 5, 7, 11, 2], [11, 2, 4, 1, 0, 19]])
WEIGHTS = {"centroid": (0.3, 0.6), "softened_logits": (2.0, 0.5)}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(N, 4, generator=generator) for name in "ab"}
    part = TensorPart(inputs, torch.arange(N) % C)
    labelled_KN = torch.rand(K, N, generator=generator) < 0.5
    labelled_KN[:, 2] = True
    return Rows(part, part, labelled_KN, "classification")


@pytest.fixture
def frozen(rows):
    generator = torch.Generator().manual_seed(1)
    evidence = torch.rand(K, 2, N, generator=generator) * rows.labelled_KN[:, None, :]
    features, logits = (
        torch.randn(K, 2, N, D, generator=generator),
        torch.randn(K, 2, N, C, generator=generator),
    )
    return FrozenTeachers(("a", "joint"), features, logits, evidence, rows.labelled_KN, "sample")


def terms():
    shapes = Shapes(D, D, D, "classification", C)
    kinds = {name: TERMS[name] for name in WEIGHTS}
    return {
        name: kind([kind.settings_type(weight=w) for w in WEIGHTS[name]], shapes, [1, 2])
        for name, kind in kinds.items()
    }


def objective(rows, frozen=None, live=None, smoothing=(0.0, 0.2), with_terms=True):
    student = Network({"a": 4}, C, SIZE, [1, 2])
    chosen = terms() if with_terms else {}
    return StudentObjective(student, chosen, rows, torch.tensor(smoothing), LocalRuntime(), frozen, live)


def task_by_hand(logits_BC, labels_B, labelled_B, smoothing):
    return cross_entropy(logits_BC[labelled_B], labels_B[labelled_B], label_smoothing=smoothing)


def test_the_total_is_the_task_plus_the_weighted_terms(rows, frozen):
    mine = objective(rows, frozen)
    found = mine.losses(ROWS_KB)
    said = mine.student(at_rows(rows.train.inputs, ("a",), ROWS_KB))
    choice = frozen.choose(ROWS_KB)
    batch = Batch(said, frozen.outputs(ROWS_KB, choice))
    for k, smoothing in enumerate((0.0, 0.2)):
        labels, labelled = ROWS_KB[k] % C, rows.labelled_KN[k, ROWS_KB[k]]
        task = task_by_hand(said.logits_KBC[k], labels, labelled, smoothing)
        torch.testing.assert_close(found.terms["task"][k], task)
        values = {name: term(batch).value_K[k] for name, term in terms().items()}
        expected = task + sum(WEIGHTS[name][k] * value for name, value in values.items())
        torch.testing.assert_close(found.total_K[k], expected)
        for name, value in values.items():
            torch.testing.assert_close(found.terms[name][k], value)
        share = (choice[k] == 1).float().mean()
        torch.testing.assert_close(found.details["selection/joint"][k], share)


def test_the_label_of_a_row_that_has_none_is_never_looked_at(rows, frozen):
    labels = torch.where(rows.labelled_KN.any(dim=0), rows.train.labels, (rows.train.labels + 1) % C)
    assert not torch.equal(labels, rows.train.labels)
    other = Rows(TensorPart(rows.train.inputs, labels), rows.validation, rows.labelled_KN, "classification")
    every_row = torch.arange(N).expand(K, N)
    totals = [objective(some, frozen).losses(every_row).total_K for some in (rows, other)]
    assert torch.equal(*totals)


def test_rows_without_a_label_still_teach_through_the_terms(rows, frozen):
    unlabelled = torch.stack([torch.nonzero(~rows.labelled_KN[k])[:4, 0] for k in range(K)])
    found = objective(rows, frozen).losses(unlabelled)
    assert found.terms["task"].tolist() == [0, 0]
    assert (found.terms["softened_logits"] > 0).all()


def test_a_teacher_that_trains_along_has_a_task_of_its_own(rows):
    teacher, auxiliary = Network({"a": 4, "b": 4}, C, SIZE, [3, 4]), Network({"b": 4}, C, SIZE, [5, 6])
    mine = objective(rows, live=LiveTeacher(teacher, auxiliary, 0.7), smoothing=(0.0, 0.0), with_terms=False)
    found = mine.losses(ROWS_KB)
    for k in range(K):
        labels, labelled = ROWS_KB[k] % C, rows.labelled_KN[k, ROWS_KB[k]]
        inputs = at_rows(rows.train.inputs, "ab", ROWS_KB)
        task, own, aside = (
            task_by_hand(network(inputs).logits_KBC[k], labels, labelled, 0.0)
            for network in (mine.student, teacher, auxiliary)
        )
        torch.testing.assert_close(found.terms["teacher_task"][k], own)
        torch.testing.assert_close(found.terms["auxiliary_task"][k], aside)
        torch.testing.assert_close(found.total_K[k], task + 0.7 * (own + aside))
    assert {"student", "teacher", "auxiliary"} <= {
        n.split(".")[0] for n, _ in mine.modules.named_parameters()
    }
    assert {"criterion", "accuracy", "teacher_log_loss", "teacher_accuracy"} <= set(mine.validation())


def test_a_frozen_auxiliary_says_what_it_said_of_each_row_in_the_lanes_that_are_left(rows):
    said = Outputs(torch.randn(K, N, D), torch.randn(K, N, C))
    seen = []

    class Look(TERMS["auxiliary_information"]):
        def forward(self, batch):
            seen.append(batch.auxiliary)
            return super().forward(batch)

    kind = Look.settings_type(teacher_gradient=True)
    term = Look([kind] * K, Shapes(D, D, D, "classification", C), [0, 1])
    teacher = Network({"a": 4, "b": 4}, C, SIZE, [3, 4])
    whole = StudentObjective(
        Network({"a": 4}, C, SIZE, [0, 1]), {"look": term}, rows, torch.zeros(K), LocalRuntime(), None,
        LiveTeacher(teacher, said, 1.0),
    )  # fmt: skip
    found = whole.losses(ROWS_KB)
    assert set(found.terms) == {"task", "teacher_task", "look"}
    assert {n.split(".")[0] for n, _ in whole.modules.named_parameters()} == {"student", "terms", "teacher"}
    for k in range(K):
        for what, all_rows in zip(seen[0], said, strict=True):
            assert torch.equal(what[k], all_rows[k, ROWS_KB[k]])
    left = whole.only(torch.tensor([1]))
    for module in (left.student, teacher, term):
        for parameter in module.parameters():
            parameter.data = parameter.data[1:]
    left.losses(ROWS_KB[1:])
    assert torch.equal(seen[1].features_KBD[0], said.features_KBD[1, ROWS_KB[1]])


def test_validation_is_the_log_loss_without_smoothing(rows, frozen):
    mine = objective(rows, frozen)
    seen = mine.validation()
    logits = outputs_on(mine.student, rows.validation, K).logits_KBC
    for k in range(K):
        torch.testing.assert_close(seen["criterion"][k], cross_entropy(logits[k], rows.train.labels))
        hits = (logits[k].argmax(dim=1) == rows.train.labels).float().mean()
        torch.testing.assert_close(seen["accuracy"][k], hits)


def test_a_large_part_goes_through_in_pieces(rows, monkeypatch):
    student = Network({"a": 4}, C, SIZE, [1, 2])
    whole = outputs_on(student, rows.train, K)
    monkeypatch.setattr("mmdistill.training.objectives.CHUNK", 7)
    pieces = outputs_on(student, rows.train, K)
    torch.testing.assert_close(whole.logits_KBC, pieces.logits_KBC)
    torch.testing.assert_close(whole.features_KBD, pieces.features_KBD)


def test_the_task_of_the_student_has_a_weight(rows, frozen):
    student = Network({"a": 4}, C, SIZE, [1, 2])
    mine = StudentObjective(
        student, terms(), rows, torch.zeros(K), LocalRuntime(), frozen, task_weight=0.8
    ).only(torch.arange(K))
    found = mine.losses(ROWS_KB)
    weighted = sum(torch.tensor(w) * found.terms[name] for name, w in WEIGHTS.items())
    torch.testing.assert_close(found.total_K, 0.8 * found.terms["task"] + weighted)


@pytest.mark.parametrize("loss", ["mse", "mmd"])
def test_hallucinated_features_go_to_the_teachers(rows, frozen, loss):
    streams = torch.randn(K, 2, N, D, generator=torch.Generator().manual_seed(7))
    student = Network({"a": 4}, C, SIZE, [1, 2], Missing("linear", ("b", "c")))
    taught = replace(frozen, streams_KSND=streams)
    mine = StudentObjective(
        student, terms(), rows, torch.zeros(K), LocalRuntime(), taught, hallucination=loss
    ).only(torch.arange(K))
    found = mine.losses(ROWS_KB)
    _, missing = student.with_missing(at_rows(rows.train.inputs, ("a",), ROWS_KB))
    for k in range(K):
        pairs = [(missing[s][k], streams[k, s, ROWS_KB[k]]) for s in range(2)]
        expected = sum(mse_loss(*pair) if loss == "mse" else mmd(*pair) for pair in pairs)
        torch.testing.assert_close(found.terms["hallucination"][k], expected)
    weighted = sum(torch.tensor(w) * found.terms[name] for name, w in WEIGHTS.items())
    torch.testing.assert_close(found.total_K, found.terms["task"] + weighted + found.terms["hallucination"])
