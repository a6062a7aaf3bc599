"""Losses between feature maps.

Axes: L leading axes (lanes; any number), B batch, C channels, H height, W width, P positions (H times W).
Where two maps differ in size the larger is averaged down to the smaller (adaptive average pooling).
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mmdistill.losses.base import loss, per_lane, unit_rows, unit_scale


@loss("at", source="Zagoruyko and Komodakis 2017; RepDistiller distiller_zoo/AT.py", needs=("maps",))
def at(student_LBCHW: Tensor, teacher_LBCHW: Tensor) -> Tensor:
    """Return mean((A(student) - A(teacher))^2) over batch and positions, A = unit vector of mean_c f^2.

    Attention transfer (Zagoruyko and Komodakis, 2017; RepDistiller `AT.py`, p = 2). The numbers of channels
    may differ. Least, 0, at the teacher; a map of zeros has the attention 0 and no gradient.
    """
    student_LBCHW, teacher_LBCHW = _same_size(student_LBCHW, teacher_LBCHW)
    return (_attention(student_LBCHW) - _attention(teacher_LBCHW)).square().mean(dim=(-2, -1))


@loss("ft", source="Kim, Park and Kwak 2018; RepDistiller distiller_zoo/FT.py", needs=("maps",))
def ft(factors_LBCHW: Tensor, teacher_LBCHW: Tensor) -> Tensor:
    """Return mean |A(student) - A(teacher)| over batch and positions, A as in :func:`at`, from factors.

    Factor transfer (Kim, Park and Kwak, 2018; RepDistiller `FT.py`, p1 = 2, p2 = 1). Least, 0, at the
    teacher; a map of zeros counts as 0 and has no gradient.

    Args:
        factors_LBCHW: what the learned translator makes of the student's maps.
        teacher_LBCHW: what the learned paraphraser makes of the teacher's maps.
    """
    factors_LBCHW, teacher_LBCHW = _same_size(factors_LBCHW, teacher_LBCHW)
    return (_attention(factors_LBCHW) - _attention(teacher_LBCHW)).abs().mean(dim=(-2, -1))


@loss("nst", source="Huang and Wang 2017; RepDistiller distiller_zoo/NST.py", needs=("maps",))
def nst(student_LBCHW: Tensor, teacher_LBCHW: Tensor) -> Tensor:
    """Return mean k(T, T) + mean k(S, S) - 2 mean k(S, T) over samples and pairs of channels, k = (x.y)^2.

    Neuron selectivity transfer (Huang and Wang, 2017; RepDistiller `NST.py`): the squared MMD between the
    channels of a sample, each a unit vector over the positions. The numbers of channels may differ. Least, 0,
    at the teacher; a channel of zeros has no similarity and no gradient.
    """
    student_LBCP, teacher_LBCP = (
        unit_rows(maps_LBCHW.flatten(-2)) for maps_LBCHW in _same_size(student_LBCHW, teacher_LBCHW)
    )
    within_L = _kernel(student_LBCP, student_LBCP) + _kernel(teacher_LBCP, teacher_LBCP)
    return within_L - 2 * _kernel(student_LBCP, teacher_LBCP)


def _kernel(first_LBCP: Tensor, second_LBCP: Tensor) -> Tensor:
    return (first_LBCP @ second_LBCP.mT).square().mean(dim=(-3, -2, -1))


@loss(
    "ab",
    source="Heo et al. 2019; RepDistiller distiller_zoo/AB.py",
    needs=("maps",),
    margin=(0.1, 10.0),
)
def ab(student_LBCHW: Tensor, teacher_LBCHW: Tensor, *, margin: float | Tensor = 1.0) -> Tensor:
    """Return 3 / 1000 times the hinge between activation boundaries, summed over a sample, mean over samples.

    (s + m)^2 where the teacher is off (t <= 0) and s > -m; (s - m)^2 where it is on and s <= m. Distillation
    of activation boundaries (Heo et al., 2019; RepDistiller `AB.py`, which weights layer i of n by
    2^(i - n + 1)). The maps have the same shape and are taken before the activation. Least, 0, where every
    unit is on its side by the margin; not at the teacher.

    Args:
        student_LBCHW: maps, behind the connector if there is one.
        teacher_LBCHW: maps of the same shape.
        margin: m > 0, one or one per lane.
    """
    m_L1111 = per_lane(margin, student_LBCHW, trailing=4)
    on = teacher_LBCHW > 0
    off_cost = (student_LBCHW + m_L1111).clamp_min(0).square()
    on_cost = (m_L1111 - student_LBCHW).clamp_min(0).square()
    # Products, not a choice: what is not finite in the student stays visible.
    cost_LB = (off_cost * ~on + on_cost * on).sum(dim=(-3, -2, -1))
    return cost_LB.mean(dim=-1) / 1000 * 3


def _attention(maps_LBCHW: Tensor) -> Tensor:
    """Return the unit vectors [L, B, P] of the mean square over channels; they do not depend on scale."""
    return unit_rows(unit_scale(maps_LBCHW, (-3, -2, -1)).square().mean(dim=-3).flatten(-2))


def _same_size(student_LBCHW: Tensor, teacher_LBCHW: Tensor) -> tuple[Tensor, Tensor]:
    (student_height, student_width), (height, width) = student_LBCHW.shape[-2:], teacher_LBCHW.shape[-2:]
    smaller = min((student_height, student_width), (height, width))
    return _pooled(student_LBCHW, smaller), _pooled(teacher_LBCHW, smaller)


def _pooled(maps_LBCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if maps_LBCHW.shape[-2:] == size:
        return maps_LBCHW
    return adaptive_avg_pool2d(maps_LBCHW.flatten(0, -4), size).reshape(*maps_LBCHW.shape[:-2], *size)
