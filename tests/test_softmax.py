from functools import partial

import pytest
import torch

from mmdistill.softmax import log_softmax, softmax


@pytest.mark.parametrize("shape", [(5,), (4, 1), (4, 3), (2, 4, 15), (2, 4, 16), (2, 3, 4, 10), (2, 4, 40)])
@pytest.mark.parametrize("ours", [softmax, log_softmax])
def test_values_and_gradients_are_those_of_torch_along_the_last_axis(shape, ours):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = partial(getattr(torch, ours.__name__), dim=-1)
    upstream = torch.arange(values.numel()).view(shape).double()
    for mine, known in zip(both(ours, values, upstream), both(theirs, values, upstream), strict=True):
        torch.testing.assert_close(mine, known, rtol=0, atol=1e-12)


def both(function, values, upstream):
    """Return the values and their gradient."""
    values = values.clone().requires_grad_()
    found = function(values)
    return found.detach(), torch.autograd.grad(found, values, upstream)[0]


def test_what_overflows_elsewhere_is_exact_here():
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    assert softmax(logits).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert log_softmax(logits).tolist() == [[0.0, -1e4], [-1e4, 0.0]]


def test_a_row_that_is_not_finite_disturbs_no_other():
    logits = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])
    assert softmax(logits)[0].isnan().all()
    assert softmax(logits)[1].tolist() == [0.5, 0.5]
