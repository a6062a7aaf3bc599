"""Terms that look at all teachers, at layers or at single modalities, against their definitions.

Axes: K lanes, B batch, D width, C classes, M teachers, S modalities of the student.
"""

import math

import pytest
import torch

from mmdistill.losses.similarity import ifd
from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Labels, Layers, Masked, Pool, Shapes

K, B, D, C, M, S, EPOCHS = 2, 6, 4, 3, 2, 2, 10
SHAPES = Shapes(D, D, D, "classification", C, ("a", "joint"), 20, EPOCHS)


def drawn(seed, *shape):
    return torch.randn(K, B, *shape, generator=torch.Generator().manual_seed(seed))


def batch(epoch=0, seed=0):
    known_KB = torch.tensor([True, True, False, True, False, True]).repeat(K, 1)
    labels = Labels(torch.arange(B).repeat(K, 1) % C, known_KB)
    features, logits = drawn(seed + 1, M, D), drawn(seed + 2, M, C)
    evidence = drawn(seed + 3, M).square() * known_KB[..., None]
    return Batch(
        Outputs(drawn(seed + 4, D).requires_grad_(), drawn(seed + 5, C).requires_grad_()),
        Outputs(features[:, :, 1], logits[:, :, 1]),
        None,
        Pool(("a", "joint"), features, logits, evidence),
        labels,
        None,
        epoch,
        Layers((drawn(seed + 6, 5), drawn(seed + 7, 5)), (drawn(seed + 8, 9), drawn(seed + 9, 9))),
        Masked(*(drawn(seed + n, S, C) for n in (10, 11, 12))),
    )


def built(name, **settings):
    kind = TERMS[name].settings_type
    return TERMS[name]([kind(**settings)] * K, SHAPES, range(K))


def kl(p_C, q_C):
    return float((p_C * (p_C.log() - q_C.log())).sum())


def test_the_best_modality_is_the_teacher_surest_of_the_label():
    given = batch()
    terms = {target: built("best_modality", relational=0, target=target) for target in ("mse", "kl")}
    values = {target: term(given).value_K.detach() for target, term in terms.items()}
    for k in range(K):
        squares, divergences = [], []
        for i in (i for i in range(B) if given.labels.known_KB[k, i]):
            teachers_MC, student_C = given.pool.logits_KBMC[k, i], given.student.logits_KBC[k, i].detach()
            best_C = max(teachers_MC, key=lambda logits_C, i=i: float(logits_C.softmax(dim=0)[i % C]))
            squares.append(float((best_C - student_C).square().mean()))
            divergences.append(kl(best_C.softmax(dim=0), student_C.softmax(dim=0)))
        assert float(values["mse"][k]) == pytest.approx(sum(squares) / len(squares), rel=1e-4)
        assert float(values["kl"][k]) == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_the_target_leaves_out_rows_without_a_label_and_relations_do_not():
    for relational in (0, 10):
        given = batch()
        built("best_modality", relational=relational)(given).value_K.sum().backward()
        moved_KB = given.student.logits_KBC.grad.abs().sum(dim=-1) > 0
        assert torch.equal(moved_KB, given.labels.known_KB if relational == 0 else torch.ones(K, B).bool())


def test_experts_weigh_less_as_the_student_comes_near_and_rows_more_as_time_goes_by():
    term, momentum, T = built("self_paced_experts", momentum=0.5), 0.5, 2.0
    own_K, experts_KM = [0.0] * K, [[0.0] * M for _ in range(K)]
    for epoch, seed in ((0, 0), (2, 20), (7, 40)):
        given = batch(epoch, seed)
        with torch.no_grad():
            found = term(given)
        for k in range(K):
            known = given.labels.known_KB[k].tolist()
            student_BC = given.student.logits_KBC[k].detach()
            own = [float(student_BC[i].softmax(dim=0)[i % C]) for i in range(B)]
            own_K[k] = momentum * own_K[k] + sum(
                p for p, is_known in zip(own, known, strict=True) if is_known
            )
            expected = 0.0
            for m in range(M):
                expert_BC = given.pool.logits_KBMC[k, :, m]
                sure = (-given.pool.evidence_KBM[k, :, m]).exp().tolist()
                mine = sum(p * is_known for p, is_known in zip(sure, known, strict=True))
                experts_KM[k][m] = momentum * experts_KM[k][m] + mine
                weight = min(max((1 - own_K[k] / experts_KM[k][m]) / 0.7, 0.0), 1.0)
                name = given.pool.names[m]
                assert float(found.details[f"weight/{name}"][k]) == pytest.approx(weight, rel=1e-4)
                for i in range(B):
                    first = sure[i] if known[i] else float(expert_BC[i].softmax(dim=0).max())
                    row = first + (1 - first) * min(epoch / (EPOCHS / 2), 1.0)
                    p_C, q_C = ((x[i] / T).softmax(dim=0) for x in (expert_BC, student_BC))
                    expected += weight * row * kl(p_C, q_C) / B
            assert float(found.value_K[k]) == pytest.approx(expected, rel=1e-3)


def test_pseudo_labels_are_the_mean_over_teachers():
    given = batch()
    value_K = built("unimodal_pseudo_labels")(given).value_K.detach()
    for k in range(K):
        student_BC = given.student.logits_KBC[k].detach().softmax(dim=-1)
        teachers_BMC = given.pool.logits_KBMC[k].softmax(dim=-1)
        rows = [kl(teachers_BMC[i, m], student_BC[i]) for i in range(B) for m in range(M)]
        assert float(value_K[k]) == pytest.approx(sum(rows) / len(rows), rel=1e-4)


def test_prototypes_are_drawn_by_all_and_draw_the_student():
    given, term = batch(), built("class_prototypes")
    value_K = term(given).value_K.detach()
    for k in range(K):
        total = 0.0
        features = [given.student.features_KBD[k].detach(), *given.pool.features_KBMD[k].unbind(dim=1)]
        for z_BD in features:
            rows = [i for i in range(B) if given.labels.known_KB[k, i]]
            prototypes_CD = term.prototypes_KCD[k].detach()
            distances = [float((z_BD[i] - prototypes_CD[i % C]).square().mean()) for i in rows]
            total += sum(distances) / len(distances)
        assert float(value_K[k]) == pytest.approx(total / len(features), rel=1e-4)


def test_layers_below_the_features_matter_in_the_critical_period_only():
    for epoch in (0, 3):
        given = batch(epoch)
        expected_K = ifd(given.student.features_KBD, given.teacher.features_KBD)
        for student, teacher in zip(*given.layers, strict=True):
            expected_K = expected_K + 50 * 0.6**epoch * ifd(student, teacher)
        torch.testing.assert_close(built("information_flow", w0=50, rho=0.6)(given).value_K, expected_K)


@pytest.mark.parametrize("weights", ["constant", "saliency"])
def test_modalities_are_followed_one_by_one(weights):
    given, T = batch(), 3.0
    value_K = built("modality_specific", weights=weights, temperature=T)(given).value_K.detach()
    for k in range(K):
        expected = 0.0
        for i in range(B):
            full_C = given.teacher.logits_KBC[k, i].softmax(dim=0)
            moved = [kl(full_C, given.masked.without_KBSC[k, i, s].softmax(dim=0)) for s in range(S)]
            shares = [0.5] * S if weights == "constant" else [x / sum(moved) for x in moved]
            for s, share in enumerate(shares):
                pair = (given.masked.teacher_KBSC, given.masked.student_KBSC)
                p_C, q_C = ((x[k, i, s] / T).softmax(dim=0) for x in pair)
                expected += share * T**2 * kl(p_C, q_C) / B
        assert math.isclose(float(value_K[k]), expected, rel_tol=1e-4)
