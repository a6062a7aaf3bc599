"""Discriminators: their layers stretch nothing.

Axes: K lanes, B batch, I inputs.
"""

import pytest
import torch

from mmdistill.models.critic import Discriminator, spectral_norm


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (64, 64), (9, 1)])
def test_the_norm_is_the_largest_singular_value(shape):
    weight = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.matrix_norm(weight, ord=2)
    found = spectral_norm(weight)
    assert (found <= exact * (1 + 1e-5)).all()
    assert (found >= 0.95 * exact).all()


def test_the_norm_of_nothing_is_no_division_by_zero():
    weight = torch.zeros(2, 3, 3, requires_grad=True)
    (weight / spectral_norm(weight)[:, None, None]).sum().backward()
    assert weight.grad.isfinite().all()


def test_a_vector_that_is_orthogonal_to_ones_is_found():
    weight = torch.tensor([[[3.0, -3.0], [0.1, 0.1]]])
    torch.testing.assert_close(spectral_norm(weight), torch.linalg.matrix_norm(weight, ord=2))


def test_logits_move_no_farther_than_what_is_judged():
    judge = Discriminator(8, 16, [0, 1], "judge")
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter *= 30
        layers = judge.normalised()
        generator = torch.Generator().manual_seed(2)
        first, second = torch.randn(2, 2, 50, 8, generator=generator)
        apart = (judge(first, layers) - judge(second, layers)).abs()
    assert (apart <= 1.1 * (first - second).norm(dim=2)).all()
    assert apart.max() > 0.01
