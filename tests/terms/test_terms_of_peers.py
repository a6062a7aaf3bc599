"""Terms of networks that teach each other, and of a gate: who learns, where and when.

Axes: K lanes, B batch, D width, C classes.
"""

import dataclasses
import math

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.pipeline.run import RunSettings, canonical, unfit_terms
from mmdistill.terms import TERMS, Batch, Labels, Shapes

K, B, D, C, EPOCHS = 2, 5, 4, 4, 11
SHAPES = Shapes(D, D, D, "classification", C, ("joint",), 20, EPOCHS)


def drawn(seed, *shape):
    return torch.randn(K, B, *shape, generator=torch.Generator().manual_seed(seed)) * 2


def batch(epoch=0, task="classification"):
    known_KB = torch.tensor([True, True, False, True, True]).repeat(K, 1)
    value = drawn(9, C) if task == "regression" else torch.arange(B).repeat(K, 1) % C
    student, teacher = (Outputs(drawn(n, D), drawn(n + 1, C).requires_grad_()) for n in (1, 3))
    return Batch(student, teacher, labels=Labels(value, known_KB), epoch=epoch)


def built(name, task="classification", **settings):
    kind = TERMS[name].settings_type
    return TERMS[name]([kind(**settings)] * K, SHAPES._replace(task=task), range(K))


def divergence(p_C, q_C):
    return sum(float(p) * (math.log(p) - math.log(q)) for p, q in zip(p_C, q_C, strict=True))


def probabilities(given):
    return [part.logits_KBC.detach().softmax(dim=-1).tolist() for part in (given.student, given.teacher)]


@pytest.mark.parametrize(
    ("schedule", "epoch", "share"),
    [("constant", 3, 1.0), ("rising", 5, 0.5), ("rising", 10, 1.0), ("falling", 0, 1.0), ("falling", 9, 0.1)],
)
def test_guidance_speaks_where_it_is_confident_and_both_ways_where_asked(schedule, epoch, share):
    given, delta = batch(epoch), 0.8
    student, teacher = probabilities(given)
    for both in (False, True):
        term = built("mutual_guidance", delta=delta, schedule=schedule, teacher_gradient=both)
        for k, value in enumerate(term(given).value_K.detach().tolist()):
            pairs = list(zip(student[k], teacher[k], strict=True))
            expected = sum(divergence(q, p) for p, q in pairs if max(q) >= share * delta)
            expected += both * sum(divergence(p, q) for p, q in pairs if max(p) >= share * delta)
            assert value == pytest.approx(expected / B, rel=1e-4)


def test_advantages_weigh_the_labelled_rows_by_who_knows_them_better():
    given, alpha = batch(), 0.7
    student, teacher = probabilities(given)
    term = built("peer_advantage", alpha=alpha, teacher_gradient=True)
    for k, value in enumerate(term(given).value_K.detach().tolist()):
        expected = 0.0
        for own, peer in ((student[k], teacher[k]), (teacher[k], student[k])):
            rows = [i for i in range(B) if given.labels.known_KB[k, i]]
            gains = [(peer[i][i % C] / own[i][i % C]) ** alpha for i in rows]
            weights = [min(max(gain, 0.01), 100.0) for gain in gains]
            parts = [w * divergence(peer[i], own[i]) for w, i in zip(weights, rows, strict=True)]
            expected += sum(parts) / sum(weights)
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_guide_learns_nothing_from_guiding(task):
    for name in ("mutual_guidance", "peer_advantage"):
        if task not in TERMS[name].tasks:
            continue
        settings = {"delta": 0.3} if name == "mutual_guidance" else {}
        one, both = (batch(task=task) for _ in range(2))
        built(name, task, **settings)(one).value_K.sum().backward()
        built(name, task, teacher_gradient=True, **settings)(both).value_K.sum().backward()
        torch.testing.assert_close(one.student.logits_KBC.grad, both.student.logits_KBC.grad)
        assert one.teacher.logits_KBC.grad is None
        assert both.teacher.logits_KBC.grad.abs().sum() > 0


@pytest.mark.parametrize(("epoch", "k"), [(0, 3), (4, 2), (10, 1), (12, 1)])
def test_the_gate_closes_over_training(epoch, k):
    given, T = batch(epoch), 2.0
    value_K = built("rank_gate", temperature=T, top=3)(given).value_K.detach()
    for lane in range(K):
        expected = 0.0
        for s, t in zip(
            *(part.logits_KBC[lane].detach() for part in (given.student, given.teacher)), strict=True
        ):
            if int(s.argmax()) in t.topk(k).indices.tolist():
                p, q = ((x / T).softmax(dim=-1).tolist() for x in (t, s))
                expected += T**2 * divergence(p, q)
            else:
                expected -= float(s.log_softmax(dim=-1)[t.argmax()])
        assert float(value_K[lane]) == pytest.approx(expected / B, rel=1e-4)


def run_of(terms, **teachers):
    data = {"dataset": "digits_views", "student": ["rows"], "privileged": ["pixels"]}
    return RunSettings.model_validate({"data": data, "teachers": teachers, "terms": terms})


@pytest.mark.parametrize("name", ["mutual_guidance", "peer_advantage"])
def test_a_frozen_teacher_learns_nothing_whatever_it_is_asked(name):
    ways = [{name: {"teacher_gradient": gradient}} for gradient in (True, False)]
    assert len({canonical(run_of(terms, pool=["joint"])).digest for terms in ways}) == 1
    assert len({canonical(run_of(terms, pool=["joint"], training="joint")).digest for terms in ways}) == 2


def test_a_gate_that_lets_everything_through_is_refused_by_name():
    gate = run_of({"rank_gate": {"top": 3}}, pool=["joint"])
    assert unfit_terms(gate, "classification", 3) == [
        "terms.rank_gate needs at least 4 classes to say anything, and there are 3"
    ]
    assert unfit_terms(gate, "classification", 4) == []
    ranks = run_of({"rank_agreement": {}}, pool=["joint"])
    assert unfit_terms(ranks, "classification", 2) == [
        "terms.rank_agreement needs at least 3 classes to say anything, and there are 2"
    ]


@pytest.mark.parametrize(("distance", "gradient"), [("mse", True), ("l1", False)])
def test_steps_lead_from_the_bins_of_the_targets_to_the_student(distance, gradient):
    given, bins, low, high, inside = batch(task="regression"), 3, -2.0, 1.0, 0.4
    ends = {"bins": bins, "low": low, "high": high, "inside": inside, "distance": distance}
    term = built("step_regression", "regression", teacher_gradient=gradient, **ends)
    value_K = term(given).value_K
    value_K.sum().backward()
    assert (given.teacher.logits_KBC.grad is not None) == gradient
    middles = torch.tensor([-1.5, -0.5, 0.5])
    logits = term.head(given.teacher.features_KBD).view(K, B, C, bins).detach()
    for k in range(K):
        known, hits = [i for i in range(B) if given.labels.known_KB[k, i]], []
        for i, t in ((i, t) for i in known for t in range(C)):
            place = min(max(math.floor(float(given.labels.value[k, i, t]) - low), 0), bins - 1)
            hits.append(-float(logits[k, i, t].log_softmax(dim=0)[place]))
        student_BC, teacher_BC = (part.logits_KBC[k].detach() for part in (given.student, given.teacher))
        gaps = [(logits[k].softmax(dim=-1) * middles).sum(dim=-1) - teacher_BC, student_BC - teacher_BC]
        first, second = (float((gap.abs() if distance == "l1" else gap.square()).mean()) for gap in gaps)
        expected = sum(hits) / len(hits) + inside * first + second
        assert float(value_K[k].detach()) == pytest.approx(expected, rel=1e-4)


def test_bins_need_an_interval():
    with pytest.raises(ValueError, match="`low` must be below `high`, but is 2 against 2"):
        TERMS["step_regression"].settings_type(low=2.0)


@pytest.mark.parametrize(("epoch", "ramp"), [(0, math.exp(-5)), (5, math.exp(-5 / 4)), (30, 1.0)])
def test_students_follow_the_mean_teacher_and_each_other(epoch, ramp):
    given = dataclasses.replace(batch(epoch), average=Outputs(drawn(20, D), drawn(21, C)))
    mean = given.average.logits_KBC.softmax(dim=-1)
    student, teacher = probabilities(given)
    term = built("competing_students", ramp_up=10, mutual=0.3, teacher_gradient=True)
    for k, value in enumerate(term(given).value_K.detach().tolist()):
        expected = 0.0
        for i, (p, q) in enumerate(zip(student[k], teacher[k], strict=True)):
            gaps = [sum((a - float(b)) ** 2 for a, b in zip(x, mean[k, i], strict=True)) for x in (p, q)]
            expected += ramp * sum(gaps) + 0.3 * (divergence(q, p) + divergence(p, q))
        assert value == pytest.approx(expected / B, rel=1e-4)


@pytest.mark.parametrize("teachers", [{"pool": ["student"]}, {"pool": ["joint"], "training": "joint"}])
def test_competing_students_need_a_peer_of_their_own_kind(teachers):
    with pytest.raises(ValueError, match="a term averages two students and needs a peer"):
        run_of({"competing_students": {}}, **teachers)
