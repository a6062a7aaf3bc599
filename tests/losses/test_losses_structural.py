"""Structural losses against slow references, POT and their limits."""

import math

import numpy as np
import ot
import pytest
import torch

from mmdistill.errors import NumericsError
from mmdistill.losses.anchors import anchor_indices, similarities, structural_points
from mmdistill.losses.structural import centroid, structural_plan, structural_transport

EXACT = {"tolerance": 1e-11, "iterations": 3000}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(*lead, batch=10):
    return draw(*lead, batch, 5), draw(*lead, batch, 7, seed=1)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def slow_points(student, teacher, k, kind="least"):
    """Return the points of equation 3 by loops over samples."""
    S_S, S_T = (np.array([[cosine(a, b) for b in z] for a in z]) for z in (student.numpy(), teacher.numpy()))
    X, Y = [], []
    for i in range(len(S_T)):
        order = sorted(range(len(S_T)), key=lambda j, i=i: S_T[i, j])
        order = [j for j in order if j != i][-k:] if kind == "most" else order[:k]
        X.append([S_T[i, j] - S_T.min() for j in order])
        Y.append([S_S[i, j] - S_S.min() for j in order])
    return np.array(X), np.array(Y)


def pot_value(X, Y, eps):
    cost = 0.5 * ot.dist(X, Y)
    w = ot.unif(len(X))
    P = ot.bregman.sinkhorn_log(w, w, cost, eps, stopThr=1e-12, numItermax=50_000, warn=False)
    return (P * cost).sum() + eps * (P * np.log(P * len(X) ** 2)).sum()


def test_similarities_are_cosines_and_zero_for_a_row_of_zeros():
    features = draw(6, 4)
    features[2] = 0
    theirs = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    torch.testing.assert_close(similarities(features), theirs)
    assert (similarities(features)[2] == 0).all()


@pytest.mark.parametrize("kind", ["least", "most"])
def test_points_are_shifted_similarities_to_the_teachers_anchors(kind):
    student, teacher = pair()
    X, Y = structural_points(student, teacher, kind, 4)
    slow_X, slow_Y = slow_points(student, teacher, 4, kind)
    np.testing.assert_allclose(X, slow_X, atol=1e-12)
    np.testing.assert_allclose(Y, slow_Y, atol=1e-12)
    assert X.min() >= 0
    assert Y.min() >= 0


def test_anchors_are_sorted_and_most_leaves_out_the_sample_itself():
    S = similarities(draw(2, 9, 4))
    for kind in ("least", "most", "all"):
        picked = S.gather(-1, anchor_indices(S, kind, 5).indices_LBA)
        assert (picked.diff(dim=-1) >= 0).all()
    most = anchor_indices(S, "most", 8).indices_LBA
    assert not (most == torch.arange(9)[:, None]).any()
    assert anchor_indices(S, "all", 5).indices_LBA.shape == (2, 9, 9)


def test_global_anchors_are_the_columns_of_least_mean_similarity():
    S = similarities(draw(2, 9, 4))
    indices = anchor_indices(S, "global", 3).indices_LBA
    for lane in range(2):
        expected = S[lane].mean(0).argsort()[:3].tolist()
        assert indices[lane].tolist() == [expected] * 9


def test_anchors_are_capped_at_what_there_is_and_at_least_one():
    S = similarities(draw(4, 3))
    assert anchor_indices(S, "least", 9).indices_LBA.shape == (4, 4)
    assert anchor_indices(S, "most", 9).indices_LBA.shape == (4, 3)
    with pytest.raises(NumericsError, match="`k` must be >= 1, but is 0"):
        anchor_indices(S, "least", 0)


@pytest.mark.parametrize("kind", ["least", "most", "global"])
def test_lanes_may_differ_in_the_number_of_anchors(kind):
    student, teacher = pair(3)
    k = torch.tensor([2, 6, 4])
    together, _ = structural_transport(student, teacher, k=k, anchors=kind, eps_rel=0.3, **EXACT)
    for lane in range(3):
        alone, _ = structural_transport(
            student[lane], teacher[lane], k=int(k[lane]), anchors=kind, eps_rel=0.3, **EXACT
        )
        assert alone.item() == pytest.approx(together[lane].item(), rel=1e-9)


@pytest.mark.parametrize("debias", [True, False])
def test_agrees_with_pot(debias):
    student, teacher = pair()
    X, Y = slow_points(student, teacher, 4)
    slow = pot_value(X, Y, 0.1)
    if debias:
        slow -= 0.5 * pot_value(X, X, 0.1) + 0.5 * pot_value(Y, Y, 0.1)
    value, details = structural_transport(student, teacher, eps=0.1, k=4, debias=debias, **EXACT)
    assert value.item() == pytest.approx(slow, rel=1e-8)
    assert details["converged"] == 1


def test_relative_eps_counts_in_median_costs_between_different_points_of_the_teacher():
    student, teacher = pair()
    X, _ = slow_points(student, teacher, 4)
    cost = 0.5 * ot.dist(X, X)[np.triu_indices(10, 1)]
    median = np.sort(cost)[(len(cost) - 1) // 2]
    relative, _ = structural_transport(student, teacher, eps_rel=0.2, k=4, **EXACT)
    absolute, _ = structural_transport(student, teacher, eps=0.2 * float(median), k=4, **EXACT)
    assert relative.item() == pytest.approx(absolute.item(), rel=1e-8)


def test_identity_coupling_is_the_paired_squared_error():
    student, teacher = pair()
    X, Y = slow_points(student, teacher, 4)
    value, details = structural_transport(student, teacher, k=4, coupling="identity")
    assert value.item() == pytest.approx(0.5 * ((X - Y) ** 2).sum(1).mean(), rel=1e-12)
    assert details["diagonal_mass"] == 1
    assert details["plan_entropy"].item() == pytest.approx(math.log(10))


def test_infinite_eps_is_half_the_squared_distance_of_means():
    student, teacher = pair()
    X, Y = slow_points(student, teacher, 4)
    value, details = structural_transport(student, teacher, k=4, eps_rel=math.inf)
    assert value.item() == pytest.approx(0.5 * ((X.mean(0) - Y.mean(0)) ** 2).sum(), rel=1e-10)
    assert details["plan_entropy"].item() == pytest.approx(2 * math.log(10))
    assert details["diagonal_mass"].item() == pytest.approx(0.1)
    assert details["iterations"] == 0


def test_small_eps_approaches_exact_transport():
    student, teacher = pair()
    X, Y = slow_points(student, teacher, 4)
    value, _ = structural_transport(student, teacher, k=4, eps=1e-4, tolerance=1e-6, iterations=20_000)
    assert value.item() == pytest.approx(ot.emd2(ot.unif(10), ot.unif(10), 0.5 * ot.dist(X, Y)), rel=1e-2)


@pytest.mark.parametrize("kind", ["least", "most", "all", "global"])
def test_debiased_transport_is_zero_at_the_teacher_for_every_kind_of_anchors(kind):
    teacher = draw(10, 5)
    value, _ = structural_transport(2 * teacher, teacher, k=4, anchors=kind, eps_rel=0.1, **EXACT)
    assert abs(value.item()) < 1e-9


@pytest.mark.parametrize("eps_rel", [0.01, 0.1, 1.0])
def test_divergence_is_positive_and_details_stay_in_range(eps_rel):
    student, teacher = (draw(4, 32, 8, seed=s, dtype=torch.float32) for s in (0, 1))
    value, details = structural_transport(student, teacher, eps_rel=eps_rel)
    assert (value > 0).all()
    assert {key: detail.shape for key, detail in details.items()} == dict.fromkeys(
        ("plan_entropy", "diagonal_mass", "converged", "iterations"), (4,)
    )
    assert (
        (details["plan_entropy"] > math.log(32) - 1e-4) & (details["plan_entropy"] < 2 * math.log(32))
    ).all()
    assert ((details["diagonal_mass"] >= 0) & (details["diagonal_mass"] <= 1)).all()
    assert ((details["converged"] >= 0) & (details["converged"] <= 1)).all()
    assert not any(detail.requires_grad for detail in details.values())


def test_entropy_and_diagonal_are_those_of_the_plan():
    student, teacher = pair()
    X, Y = slow_points(student, teacher, 4)
    cost, w = 0.5 * ot.dist(X, Y), ot.unif(10)
    P = ot.bregman.sinkhorn_log(w, w, cost, 0.1, stopThr=1e-12, numItermax=50_000, warn=False)
    _, details = structural_transport(student, teacher, eps=0.1, k=4, **EXACT)
    assert details["plan_entropy"].item() == pytest.approx(-(P * np.log(P)).sum(), rel=1e-8)
    assert details["diagonal_mass"].item() == pytest.approx(np.trace(P), rel=1e-8)


def test_shift_changes_the_points_and_detaching_it_only_the_gradient():
    student, teacher = pair()
    student.requires_grad_()
    results = {}
    for shift, detach in (("min", False), ("min", True), ("none", False)):
        value, _ = structural_transport(
            student, teacher, k=4, eps_rel=0.5, shift=shift, detach_shift=detach, **EXACT
        )
        results[shift, detach] = value.item(), torch.autograd.grad(value, student)[0]
    assert results["min", False][0] == pytest.approx(results["min", True][0], rel=1e-12)
    assert results["none", False][0] != pytest.approx(results["min", False][0], rel=1e-3)
    assert not torch.allclose(results["min", False][1], results["min", True][1])


def test_a_diverged_lone_batch_gives_nan_not_an_exception():
    student, teacher = pair()
    value, details = structural_transport(student * math.nan, teacher, k=4)
    assert value.isnan()
    assert details["converged"] < 1


def test_a_batch_of_one_or_of_equal_samples_is_finite():
    for features in (torch.ones(1, 3), torch.ones(6, 3)):
        value, _ = structural_transport(features, features, eps_rel=0.1)
        assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["eps", "eps_rel"])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, torch.tensor([0.1, -1.0])])
def test_refuses_a_regularisation_that_is_not_positive(name, bad):
    student, teacher = pair(2)
    with pytest.raises(NumericsError, match=rf"`{name}` must be > 0, but is (0|-1|nan)$"):
        structural_transport(student, teacher, k=4, **{name: bad})


def test_centroid_is_the_distance_between_mean_rows_of_the_similarities():
    student, teacher = pair(2)
    slow = (similarities(teacher).mean(1) - similarities(student).mean(1)).norm(dim=1)
    torch.testing.assert_close(centroid(student, teacher), slow)
    torch.testing.assert_close(centroid(student, teacher, scaled=True), slow / math.sqrt(10))


def test_centroid_has_a_finite_gradient_at_the_teacher():
    student = draw(2, 6, 4).requires_grad_()
    centroid(student, student.detach()).sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("rows", [1, 7])
def test_anchors_of_equal_similarities_are_those_of_a_stable_sort(rows):
    values = draw(4, rows, 30, dtype=torch.float32).mul(2).round() / 2
    values[0, 0, :2] = torch.tensor([-0.0, 0.0])
    expected = values.sort(dim=-1, stable=True).indices
    S = torch.nn.functional.pad(values, (0, 0, 0, 30 - rows), value=1.0)
    assert torch.equal(anchor_indices(S, "least", 30).indices_LBA[:, :rows], expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eps": 0.02},
        {"coupling": "identity"},
        {"coupling": "exact"},
        {"coupling": "unbalanced"},
        {"coupling": "gromov"},
        {"coupling": "fused_gromov", "anchors": "all"},
    ],
)
def test_the_plan_is_the_one_behind_the_value(settings):
    student, teacher = pair(2)
    value, details = structural_transport(student, teacher, k=4, **settings)
    plan = structural_plan(student, teacher, k=4, **settings)
    assert plan.shape == (2, 10, 10)
    assert not plan.requires_grad
    torch.testing.assert_close(plan.diagonal(dim1=-2, dim2=-1).sum(-1), details["diagonal_mass"])
    if settings.get("coupling") != "unbalanced":
        torch.testing.assert_close(plan.sum(dim=(-2, -1)), torch.ones_like(value))


def test_the_lines_of_the_plan_are_the_teachers():
    student, teacher = pair()
    plan = structural_plan(student, teacher, coupling="exact", anchors="global", k=10)
    X, Y = structural_points(student, teacher, "global", 10)
    cost = 0.5 * ot.dist(X.numpy(), Y.numpy())
    np.testing.assert_allclose((plan.numpy() * cost).sum(), ot.emd2(ot.unif(10), ot.unif(10), cost))
