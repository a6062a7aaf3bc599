"""What holds for every loss that is registered."""

import math

import pytest
import torch

from mmdistill.losses.base import LOSSES
from mmdistill.losses.structural import structural_transport
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")

SIZES = {"K": 3, "B": 9, "C": 6, "D": 6, "E": 4, "H": 2, "W": 3, "M": 2, "N": 5, "T": 2}
LANES = SIZES["K"]
TEMPERATURES = torch.tensor([0.1, 0.5, 2.0])
PAIR = "KBD KBD"
LABELLED = "KBC KBC KB"
MAPS = "KBCHW KBCHW"

# Axes of each tensor, the student's first, then the settings: they differ between lanes where they may.
# Without a letter of floats, `KB`, a tensor holds class indices.
CASES = {
    "ab": (MAPS, {"margin": TEMPERATURES}),
    "at": (MAPS, {}),
    "c2kd": (LABELLED, {"threshold": torch.tensor([-0.5, 0.0, 0.1]), "temperature": TEMPERATURES}),
    "cc": (PAIR, {}),
    "ccc": ("KBT KBT", {}),
    "cckd": (PAIR, {"gamma": TEMPERATURES}),
    "ccl_nce": ("KBD KBD KB", {"temperature": TEMPERATURES}),
    "centroid": (PAIR, {"scaled": True}),
    "class_prototypes": ("KBD KCD KB", {}),
    "cosine_alignment": (PAIR, {}),
    "crd": ("KBD KBND", {"n_data": torch.tensor([50.0, 1e3, 1e6]), "Z": 1e3, "temperature": TEMPERATURES}),
    "crd_contrast": ("KBN", {"n_data": torch.tensor([50.0, 1e3, 1e6])}),
    "cross_entropy": ("KBC KB", {"label_smoothing": torch.tensor([0.0, 0.1, 0.9])}),
    "darkrank": (PAIR, {"alpha": TEMPERATURES, "beta": torch.tensor([1.0, 2.0, 3.0])}),
    "dkd": (LABELLED, {"temperature": TEMPERATURES, "alpha": TEMPERATURES, "beta": TEMPERATURES}),
    "fitnet": (PAIR, {}),
    "ft": (MAPS, {}),
    "ifd": (PAIR, {}),
    "infonce": (PAIR, {"temperature": TEMPERATURES}),
    "kd": ("KBC KBC", {"temperature": TEMPERATURES}),
    "lfme": ("KBC KBE", {"classes_E": torch.tensor([4, 0, 5, 2]), "temperature": TEMPERATURES}),
    "mlld": ("KBC KBC", {}),
    "mmd": (PAIR, {"ratio": torch.tensor([1.5, 2.0, 3.0])}),
    "msd": ("KMBC KMBC", {"temperature": TEMPERATURES}),
    "mt_pkdot": (PAIR, {"transport_weight": TEMPERATURES, "eps": torch.tensor([0.1, 0.5, 1.0]), "k": 5}),
    "nce": (PAIR, {"n_data": torch.tensor([50.0, 1e3, 1e6]), "Z": 1e3, "temperature": TEMPERATURES}),
    "nst": (MAPS, {}),
    "pairwise_order": ("KBB KBB", {"threshold": torch.tensor([0.5, 0.6, 0.7])}),
    "peer_advantage": (LABELLED, {"alpha": TEMPERATURES}),
    "peer_advantage_regression": ("KBT KBT KBT", {"alpha": TEMPERATURES}),
    "pkd_cos": (PAIR, {}),
    "pkdot": (PAIR, {"eps": torch.tensor([0.1, 0.5, math.inf]), "k": torch.tensor([3, 5, 9])}),
    "pkt": (PAIR, {}),
    "prediction_ccc": ("KBT KBT", {"unbiased": True}),
    "prediction_mse": ("KBT KBT", {}),
    "rkd": (PAIR, {"distance_weight": TEMPERATURES, "angle_weight": TEMPERATURES}),
    "rlkd": ("KBC KBC", {"k": torch.tensor([2, 3, 6]), "temperature": TEMPERATURES}),
    "rlkd_batch": ("KBT KBT", {"temperature": TEMPERATURES}),
    "samm": ("KBC KBC", {}),
    "samm_target": ("KBC KMBC KB", {}),
    "skd_gate": ("KBC KBC", {"k": torch.tensor([1, 3, 5]), "temperature": TEMPERATURES}),
    "skl": ("KBC KBC", {}),
    "softce": ("KBC KBC", {"temperature": TEMPERATURES}),
    "sp": (PAIR, {}),
    "squared_error": ("KBT KBT", {}),
    "step_regression": (
        "KBT KBT KBTC",
        {"class_values_C": torch.arange(6) - 2.5, "teacher_weight": TEMPERATURES},
    ),
    "vid": (PAIR, {"rho": torch.linspace(-3, 3, 18).view(3, 6)}),
    "weak_mutual": ("KBC KBC", {"threshold": torch.tensor([0.0, 0.3, 0.5])}),
}
NEVER_LEAST_AT_TEACHER = {
    *("ab", "ccl_nce", "class_prototypes", "crd", "crd_contrast", "cross_entropy", "darkrank", "infonce"),
    *("lfme", "nce", "pairwise_order", "rlkd", "rlkd_batch", "samm_target", "step_regression", "vid"),
}
ORDER_MATTERS = {"cc"}
# What the teacher only chooses or ranks by sends it nothing; neither do labels.
NO_TEACHER_GRADIENT = {
    "ab",
    "crd_contrast",
    "cross_entropy",
    "darkrank",
    "pairwise_order",
    "rlkd",
    "rlkd_batch",
}
every_loss = pytest.mark.parametrize("name", sorted(CASES))


def draw(axes, seed, dtype=torch.float32, **sizes):
    shape = [(SIZES | sizes)[axis] for axis in axes]
    if axes == "KB":
        return torch.arange(math.prod(shape)).view(shape) % SIZES["C"]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(name, dtype=torch.float32, **sizes):
    """Return the student's tensor and the others."""
    student, *others = (draw(axes, seed, dtype, **sizes) for seed, axes in enumerate(CASES[name][0].split()))
    return positive(name, student), others


def positive(name, student):
    """Return a student the loss is defined for: scores are positive."""
    return student.abs() + 0.01 if name == "crd_contrast" else student


def call(name, student, *others, lane=None):
    """Return the loss of all lanes, or of one alone without a lane axis."""
    settings = dict(CASES[name][1])
    if "rho" in settings:
        settings["rho"] = settings["rho"].to(student.dtype)
    if lane is not None:
        settings = {
            key: value[lane] if isinstance(value, torch.Tensor) and key[-2:] not in ("_C", "_E") else value
            for key, value in settings.items()
        }
    return LOSSES[name](student, *others, **settings)


def permuted(axes, tensor, order):
    for position, axis in enumerate(axes):
        if axis == "B":
            tensor = tensor.index_select(position, order)
    return tensor


def finite(name, student, *others):
    student = student.detach().requires_grad_()
    value = call(name, student, *others)
    value.sum().backward()
    return bool(value.isfinite().all() and student.grad.isfinite().all())


def test_every_registered_loss_is_tested_here():
    assert set(CASES) == set(LOSSES)


@every_loss
def test_gives_one_scalar_per_lane_that_equals_the_lane_alone(name):
    student, others = tensors(name)
    together = call(name, student, *others)
    assert together.shape == (LANES,)
    for lane in range(LANES):
        alone = call(name, student[lane], *(tensor[lane] for tensor in others), lane=lane)
        assert alone.shape == ()
        assert alone.item() == pytest.approx(together[lane].item(), rel=1e-5)


@every_loss
def test_takes_any_leading_axes(name):
    student, others = tensors(name)
    doubled = call(name, *(torch.stack([tensor, tensor]) for tensor in (student, *others)))
    torch.testing.assert_close(doubled, call(name, student, *others).expand(2, LANES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(CASES) - ORDER_MATTERS))
def test_order_of_the_samples_does_not_matter(name):
    student, others = tensors(name)
    order = torch.randperm(SIZES["B"], generator=torch.Generator().manual_seed(3))
    axes = CASES[name][0].split()
    moved = [permuted(*pair, order) for pair in zip(axes, (student, *others), strict=True)]
    torch.testing.assert_close(call(name, *moved), call(name, student, *others), rtol=1e-3, atol=1e-5)


# The transport is checked below when it has converged; the others hold a width or weights constant.
@pytest.mark.parametrize(
    "name",
    sorted(set(CASES) - {"pkdot", "mt_pkdot", "mmd", "peer_advantage", "peer_advantage_regression"}),
)
def test_gradient_agrees_with_finite_differences(name):
    student, others = tensors(name, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: call(name, x, *others), (student.requires_grad_(),), atol=1e-6, rtol=1e-4, fast_mode=True
    )


def test_gradient_of_converged_structural_transport_agrees_with_finite_differences():
    student, teacher = draw("KBD", 0, torch.float64)[:, :6], draw("KBD", 1, torch.float64)[:, :6]

    def value(x):
        return structural_transport(x, teacher, **CASES["pkdot"][1], tolerance=1e-11, iterations=300)[0]

    assert torch.autograd.gradcheck(value, (student.requires_grad_(),), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(CASES) - NEVER_LEAST_AT_TEACHER))
def test_is_least_at_the_teacher(name):
    _, (teacher, *labels) = tensors(name, torch.float64)
    # What the transport may be off by at its training tolerance.
    exact = 1e-3 if "pkdot" in name else 1e-9
    least = call(name, teacher, teacher, *labels)
    if name != "softce":
        assert (least.abs() <= exact).all()
    for scale in (1e-2, 1.0):
        other = teacher + scale * draw(CASES[name][0].split()[0], 7, torch.float64)
        assert (call(name, other, teacher, *labels) >= least - exact).all()
    assert (call(name, other, teacher, *labels) > least + 1e-5).all()


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e4])
def test_value_and_gradient_are_finite_at_extremes_in_single_precision(name, scale):
    student, others = tensors(name)
    student = positive(name, student * scale)
    assert finite(name, student, *others)
    scaled = [tensor * scale if tensor.is_floating_point() else tensor for tensor in others]
    assert finite(name, student, *scaled)


@every_loss
def test_value_and_gradient_are_finite_for_equal_rows_zero_rows_and_one_class(name):
    student, others = tensors(name)
    ones = [torch.ones_like(tensor) for tensor in (student, *others)]
    assert finite(name, *ones)
    student[:, 2:4] = 1e-3 if name == "crd_contrast" else 0
    assert finite(name, student, *others)
    one_class = [tensor if tensor.is_floating_point() else torch.zeros_like(tensor) for tensor in others]
    assert finite(name, student, *one_class)
    if len(others) == 1 and others[0].shape == student.shape:
        assert finite(name, student, student)


@every_loss
@pytest.mark.parametrize("batch", [1, 2])
def test_value_and_gradient_are_finite_in_the_smallest_batches(name, batch):
    student, others = tensors(name, B=batch)
    assert finite(name, student, *others)


@every_loss
def test_a_lane_of_nan_leaves_the_others_alone(name):
    student, others = tensors(name)
    clean = call(name, student, *others)
    student[1] = math.nan
    student.requires_grad_()
    value = call(name, student, *others)
    torch.testing.assert_close(value[[0, 2]], clean[[0, 2]], rtol=1e-5, atol=1e-6)
    assert value[1].isnan()
    value.sum().backward()
    assert student.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_TEACHER_GRADIENT))
def test_the_teacher_gets_a_gradient_unless_the_caller_detaches_it(name):
    student, (teacher, *labels) = tensors(name)
    teacher.requires_grad_()
    call(name, student, teacher, *labels).sum().backward()
    assert teacher.grad.abs().sum() > 0


WEIGHTED = sorted(name for name, entry in LOSSES.items() if "row_weights_LB" in entry.tensors)


@pytest.mark.parametrize("name", WEIGHTED)
def test_rows_without_weight_are_as_if_they_were_not_there(name):
    axes = CASES[name][0].split()
    student, others = tensors(name, torch.float64)
    mask = torch.arange(SIZES["B"]) % 3 != 1
    kept = [
        permuted(axis, tensor, mask.nonzero()[:, 0])
        for axis, tensor in zip(axes, (student, *others), strict=True)
    ]
    others = [torch.where(mask, tensor, -1) if tensor.ndim == 2 else tensor for tensor in others]
    student.requires_grad_()
    settings = CASES[name][1]
    value = LOSSES[name](student, *others, row_weights_LB=mask.expand(LANES, -1), **settings)
    torch.testing.assert_close(value, LOSSES[name](*kept, **settings), rtol=1e-10, atol=1e-12)
    value.sum().backward()
    assert (student.grad[:, ~mask] == 0).all()
    nothing = LOSSES[name](student, *others, row_weights_LB=torch.zeros(LANES, len(mask)), **settings)
    (gradient,) = torch.autograd.grad(nothing.sum(), student)
    assert (nothing == 0).all()
    assert (gradient == 0).all()
