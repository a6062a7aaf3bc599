"""What holds for every loss that is registered."""

import math

import pytest
import torch

from mmdistill.losses.base import LOSSES
from mmdistill.losses.structural import structural_transport
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")

LANES, BATCH, WIDTH = 3, 9, 6
LABELS = torch.arange(LANES * BATCH).view(LANES, BATCH) % WIDTH
RHO = torch.linspace(-3, 3, LANES * WIDTH).view(LANES, WIDTH)
TEMPERATURES = torch.tensor([0.1, 0.5, 2.0])

# The second argument is a teacher, or the labels; settings differ between lanes where they may.
SETTINGS = {
    "kd": {"temperature": TEMPERATURES},
    "prediction_mse": {},
    "infonce": {"temperature": TEMPERATURES},
    "nce": {"temperature": TEMPERATURES, "log_normaliser": torch.tensor([0.0, 2.0, -1.0])},
    "vid": {"rho": RHO},
    "cosine_alignment": {},
    "cross_entropy": {"label_smoothing": torch.tensor([0.0, 0.1, 0.9])},
    "ccc": {},
    "squared_error": {},
    "pkdot": {"eps": torch.tensor([0.1, 0.5, math.inf]), "k": torch.tensor([3, 5, 9])},
    "centroid": {"scaled": True},
}
LEAST_AT_TEACHER = ["kd", "prediction_mse", "cosine_alignment", "ccc", "squared_error", "pkdot", "centroid"]


def draw(seed, dtype=torch.float32):
    return torch.randn(LANES, BATCH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def call(name, student, second, lane=None):
    """Return the loss of all lanes, or of one alone without a lane axis."""
    settings = {
        key: value.to(student.dtype) if key == "rho" else value for key, value in SETTINGS[name].items()
    }
    if lane is not None:
        settings = {k: v[lane] if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    return LOSSES[name](student, second, **settings)


def second_for(name, seed=1, dtype=torch.float32):
    return LABELS if name == "cross_entropy" else draw(seed, dtype)


every_loss = pytest.mark.parametrize("name", sorted(SETTINGS))


def test_every_registered_loss_is_tested_here():
    assert set(SETTINGS) == set(LOSSES)


@every_loss
def test_gives_one_scalar_per_lane_that_equals_the_lane_alone(name):
    student, second = draw(0), second_for(name)
    together = call(name, student, second)
    assert together.shape == (LANES,)
    for lane in range(LANES):
        alone = call(name, student[lane], second[lane], lane)
        assert alone.shape == ()
        assert alone.item() == pytest.approx(together[lane].item(), rel=1e-5)


@every_loss
def test_takes_any_leading_axes(name):
    student, second = draw(0), second_for(name)
    doubled = call(name, torch.stack([student, student]), torch.stack([second, second]))
    torch.testing.assert_close(doubled, call(name, student, second).expand(2, LANES), rtol=1e-5, atol=1e-6)


@every_loss
def test_order_of_the_samples_does_not_matter(name):
    student, second = draw(0), second_for(name)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        call(name, student[:, order], second[:, order]), call(name, student, second), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"pkdot"}))
def test_gradient_agrees_with_finite_differences(name):
    student = draw(0, torch.float64).requires_grad_()
    second = second_for(name, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: call(name, x, second), (student,), atol=1e-6, rtol=1e-4)


def test_gradient_of_converged_structural_transport_agrees_with_finite_differences():
    student, teacher = draw(0, torch.float64)[:, :6].requires_grad_(), draw(1, torch.float64)[:, :6]

    def loss(x):
        return structural_transport(x, teacher, **SETTINGS["pkdot"], tolerance=1e-11, iterations=300)[0]

    assert torch.autograd.gradcheck(loss, (student,), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LEAST_AT_TEACHER)
def test_is_zero_at_the_teacher_and_positive_elsewhere(name):
    teacher = draw(1)
    torch.testing.assert_close(call(name, teacher, teacher), torch.zeros(LANES), rtol=0, atol=1e-5)
    assert (call(name, draw(0), teacher) > 1e-3).all()


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e4])
def test_value_and_gradient_are_finite_at_extremes_in_single_precision(name, scale):
    student = (draw(0) * scale).requires_grad_()
    value = call(name, student, second_for(name))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@every_loss
def test_value_and_gradient_are_finite_when_all_samples_are_the_same(name):
    student = torch.ones(LANES, BATCH, WIDTH, requires_grad=True)
    second = LABELS if name == "cross_entropy" else torch.ones(LANES, BATCH, WIDTH)
    value = call(name, student, second)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@every_loss
def test_a_lane_of_nan_leaves_the_others_alone(name):
    student, second = draw(0), second_for(name)
    clean = call(name, student, second)
    student[1] = math.nan
    student.requires_grad_()
    value = call(name, student, second)
    torch.testing.assert_close(value[[0, 2]], clean[[0, 2]], rtol=1e-5, atol=1e-6)
    assert value[1].isnan()
    value.sum().backward()
    assert student.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"cross_entropy"}))
def test_the_teacher_gets_a_gradient_unless_the_caller_detaches_it(name):
    teacher = draw(1).requires_grad_()
    call(name, draw(0), teacher).sum().backward()
    assert teacher.grad.abs().sum() > 0
