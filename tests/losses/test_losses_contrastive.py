"""Contrastive losses against sums over pairs, written out."""

import math

import pytest
import torch

from mmdistill.losses.contrastive import infonce, log_mean_score, nce

L, B, D, TAU = 2, 7, 5, 0.3


def drawn(seed, rows=B, width=D):
    return torch.randn(L, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(student, teacher, lane, tau=TAU):
    """Return sim / tau of every combination of one lane as plain numbers."""
    return [[float(torch.cosine_similarity(s, t, dim=0)) / tau for t in teacher[lane]] for s in student[lane]]


def wanted():
    """Return the negatives of rows of three classes."""
    labels = torch.arange(B) % 3
    return (labels[:, None] != labels[None, :]).expand(L, B, B)


def slow_nce(score, log_z, negatives):
    pairs = [(i, j) for i in range(B) for j in range(B) if i != j and negatives[i][j]]
    count = len(pairs) / B

    def h(i, j):
        ratio = math.exp(score[i][j] - log_z)
        return ratio / (ratio + count)

    missed = -sum(math.log(h(i, i)) for i in range(B)) / B
    return missed - count * sum(math.log(1 - h(i, j)) for i, j in pairs) / len(pairs)


def slow_infonce(score, negatives):
    total = 0.0
    for i in range(B):
        others = [j for j in range(B) if j == i or negatives[i][j]]
        across = sum(math.exp(score[i][j]) for j in others)
        down = sum(math.exp(score[j][i]) for j in others)
        total += 0.5 * (math.log(across) + math.log(down)) - score[i][i]
    return total / B


@pytest.mark.parametrize("given", [None, wanted()], ids=["all others", "other classes"])
def test_both_critics_are_the_sums_they_are_defined_as(given):
    student, teacher, log_z = drawn(0), drawn(1), torch.tensor([0.4, -1.2])
    found = nce(student, teacher, temperature=TAU, log_normaliser=log_z, negatives_LBB=given)
    symmetric = infonce(student, teacher, temperature=TAU, negatives_LBB=given)
    for lane in range(L):
        score = scores(student, teacher, lane)
        negatives = torch.ones(B, B) if given is None else given[lane]
        assert found[lane].item() == pytest.approx(slow_nce(score, float(log_z[lane]), negatives))
        assert symmetric[lane].item() == pytest.approx(slow_infonce(score, negatives))


def test_the_constant_is_the_mean_score():
    student, teacher = drawn(0), drawn(1)
    for lane, found in enumerate(log_mean_score(student, teacher, TAU).tolist()):
        flat = [math.exp(x) for row in scores(student, teacher, lane) for x in row]
        assert found == pytest.approx(math.log(sum(flat) / len(flat)))


def test_without_its_constant_the_loss_hardly_tells_pairs_apart():
    student, teacher = drawn(0, rows=128, width=64), drawn(1, rows=128, width=64)
    gains = {}
    for name, log_z in (("none", -math.log(1000)), ("mean", log_mean_score(student, teacher, 0.07))):
        apart, same = (
            nce(x, teacher, temperature=0.07, log_normaliser=log_z).mean() for x in (student, teacher)
        )
        gains[name] = (same / apart).item()
    assert gains["mean"] < 0.2
    assert gains["none"] > 0.9


def test_both_bounds_are_capped_at_the_logarithm_of_the_negatives():
    same = torch.eye(B, dtype=torch.float64).expand(L, B, B)
    log_z = log_mean_score(same, same, 0.01)
    assert (infonce(same, same, temperature=0.01) >= 0).all()
    assert (nce(same, same, temperature=0.01, log_normaliser=log_z) >= 0).all()


def test_a_batch_of_one_class_says_nothing_to_infonce_and_stays_finite():
    student, none = drawn(0).requires_grad_(), torch.zeros(L, B, B, dtype=torch.bool)
    assert infonce(student, drawn(1), temperature=TAU, negatives_LBB=none).abs().max() < 1e-12
    value = nce(student, drawn(1), temperature=TAU, negatives_LBB=none).sum()
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
