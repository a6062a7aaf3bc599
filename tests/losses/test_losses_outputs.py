"""Losses between outputs, projections and labels against slow references."""

import math

import numpy as np
import pytest
import torch

from mmdistill.losses.alignment import cosine_alignment
from mmdistill.losses.base import unit_rows, weighted_mean
from mmdistill.losses.contrastive import infonce
from mmdistill.losses.gaussian import vid
from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.losses.task import ccc_loss, cross_entropy, squared_error


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row):
    largest = max(row)
    powers = [math.exp(x - largest) for x in row]
    return [p / sum(powers) for p in powers]


def test_kd_is_the_mean_divergence_of_softened_probabilities():
    student, teacher, T = draw(5, 4), draw(5, 4, seed=1), 3.0
    slow = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = softmax([x / T for x in s]), softmax([x / T for x in t])
        slow += sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
    assert kd(student, teacher, temperature=T).item() == pytest.approx(T * T * slow / 5, rel=1e-12)


def test_kd_agrees_with_torch():
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    theirs = torch.nn.functional.kl_div(
        (student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(kd(student, teacher, temperature=2.0), 4 * theirs)


def test_kd_leaves_out_rows_without_weight():
    student, teacher = draw(2, 5, 4), draw(2, 5, 4, seed=1)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    value = kd(student, teacher, row_weights_LB=mask)
    torch.testing.assert_close(value[0], kd(student[0, mask[0]], teacher[0, mask[0]]))
    assert value[1] == 0


def test_prediction_mse_is_torchs():
    a, b = draw(6, 3), draw(6, 3, seed=1)
    torch.testing.assert_close(prediction_mse(a, b), torch.nn.functional.mse_loss(a, b))


def test_weighted_mean_ignores_what_is_masked_even_if_it_is_not_finite():
    values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    mean = weighted_mean(values, torch.tensor([1.0, 0.0, 3.0]))
    mean.backward()
    assert mean.item() == pytest.approx(2.5)
    assert values.grad.tolist() == [0.25, 0.0, 0.75]


def test_infonce_is_two_cross_entropies():
    a, b, tau = draw(6, 3), draw(6, 3, seed=1), 0.2
    sim = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2) / tau
    truth = torch.arange(6)
    both = torch.nn.functional.cross_entropy(sim, truth) + torch.nn.functional.cross_entropy(sim.mT, truth)
    torch.testing.assert_close(infonce(a, b, temperature=tau), both / 2)


def test_infonce_of_uninformative_features_is_log_batch():
    assert infonce(torch.ones(7, 3), torch.ones(7, 3)).item() == pytest.approx(math.log(7))


def test_vid_is_the_gaussian_likelihood_without_its_constant():
    mean, teacher, rho = draw(5, 3), draw(5, 3, seed=1), draw(3, seed=2)
    variance = torch.nn.functional.softplus(rho) + 1e-5
    log_p = torch.distributions.Normal(mean, variance.sqrt()).log_prob(teacher)
    torch.testing.assert_close(vid(mean, teacher, rho=rho), -log_p.mean() - 0.5 * math.log(2 * math.pi))


def test_alignment_is_torchs_cosine_embedding_loss():
    a, b = draw(5, 3), draw(5, 3, seed=1)
    theirs = torch.nn.functional.cosine_embedding_loss(a, b, torch.ones(5))
    torch.testing.assert_close(cosine_alignment(a, b), theirs)
    assert cosine_alignment(a, -a).item() == pytest.approx(2)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e30])
def test_unit_rows_have_length_one_at_any_scale_and_zero_rows_no_gradient(scale):
    rows = (draw(4, 5) * scale).float()
    rows[2] = 0
    rows.requires_grad_()
    unit = unit_rows(rows)
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    (unit * torch.arange(5.0)).sum().backward()
    assert rows.grad.isfinite().all()
    assert (rows.grad[2] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_torchs_over_the_labelled_rows(smoothing):
    logits, labels = draw(8, 4), torch.arange(8) % 4
    mask = torch.arange(8) % 3 > 0
    unlabelled = torch.where(mask, labels, -1)
    theirs = torch.nn.functional.cross_entropy(logits[mask], labels[mask], label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, unlabelled, mask, label_smoothing=smoothing), theirs)


@pytest.mark.parametrize("loss", [cross_entropy, ccc_loss, squared_error])
def test_a_batch_without_a_label_gives_zero_and_no_gradient(loss):
    predictions = draw(2, 5, 3).requires_grad_()
    targets = torch.full((2, 5), -1) if loss is cross_entropy else draw(2, 5, 3, seed=1)
    mask = torch.tensor([[False] * 5, [True] * 5])
    if loss is cross_entropy:
        targets[1] = 0
    value = loss(predictions, targets, mask)
    value.sum().backward()
    assert value[0] == 0
    assert value[1] > 0
    assert (predictions.grad[0] == 0).all()
    assert predictions.grad[1].abs().sum() > 0


def test_ccc_loss_is_lins_coefficient_over_the_labelled_rows():
    predictions, targets = draw(9, 2), draw(9, 2, seed=1) + 0.3
    mask = torch.arange(9) != 4
    slow = []
    for target in range(2):
        p, t = predictions[mask, target].numpy(), targets[mask, target].numpy()
        slow.append(2 * np.cov(p, t, bias=True)[0, 1] / (p.var() + t.var() + (p.mean() - t.mean()) ** 2))
    assert ccc_loss(predictions, targets, mask).item() == pytest.approx(1 - np.mean(slow), rel=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_ccc_loss_of_a_constant_prediction_is_one_with_a_finite_gradient(constant):
    predictions = torch.full((6, 1), constant, requires_grad=True)
    for targets in (torch.arange(6.0)[:, None], torch.full((6, 1), constant)):
        value = ccc_loss(predictions, targets)
        (gradient,) = torch.autograd.grad(value, predictions)
        assert value.item() == pytest.approx(1)
        assert gradient.isfinite().all()


def test_ccc_loss_reaches_its_ends():
    targets = torch.arange(6.0)[:, None] - 2.5
    assert ccc_loss(targets, targets).item() == pytest.approx(0, abs=1e-6)
    assert ccc_loss(-targets, targets).item() == pytest.approx(2)


def test_squared_error_is_the_mean_over_labelled_rows():
    predictions, targets = draw(5, 2), draw(5, 2, seed=1)
    mask = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(
        squared_error(predictions, targets, mask),
        torch.nn.functional.mse_loss(predictions[mask], targets[mask]),
    )
