"""Losses between predictions of numbers.

Axes: L leading axes (lanes; any number), B batch, C classes, T targets.
"""

from typing import Literal

from torch import Tensor

from mmdistill.losses.base import loss, per_lane, weighted_mean
from mmdistill.losses.task import ccc_loss
from mmdistill.softmax import softmax

Distance = Literal["mse", "l1"]


@loss(
    "prediction_ccc",
    source="counterpart of kd in regression (inferred); Lin 1989; MMPKD CCC_loss.py",
    needs=("logits",),
    tasks="regression",
)
def prediction_ccc(
    student_LBT: Tensor,
    teacher_LBT: Tensor,
    *,
    unbiased: bool = False,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return 1 - concordance correlation of two predictions over the batch, averaged over targets.

    :func:`mmdistill.losses.task.ccc_loss` with the teacher's predictions as targets. Least, 0, at the
    teacher; a constant prediction of either gives 1.

    Args:
        student_LBT: predictions.
        teacher_LBT: predictions in the same units.
        unbiased: whether variances and covariance are divided by n - 1.
        row_weights_LB: mask of the rows that count; all by default.
    """
    mask_LB = None if row_weights_LB is None else row_weights_LB > 0
    return ccc_loss(student_LBT, teacher_LBT, mask_LB, unbiased=unbiased)


@loss(
    "step_regression",
    source="VideoAdviser (Wang et al. 2023), page 1; distance and weights inferred",
    needs=("logits",),
    tasks="regression",
    teacher_weight=(0.0, 10.0),
    student_weight=(0.0, 10.0),
)
def step_regression(
    student_LBT: Tensor,
    teacher_LBT: Tensor,
    teacher_logits_LBTC: Tensor,
    *,
    class_values_C: Tensor,
    distance: Distance = "mse",
    teacher_weight: float | Tensor = 1.0,
    student_weight: float | Tensor = 1.0,
) -> Tensor:
    """Return teacher_weight d(E[v], r_T) + student_weight d(sg r_T, r_S), E[v] = sum_c softmax(l_T)_c v_c.

    The two steps of VideoAdviser (Wang et al., 2023): inside the teacher from its classes to its regression,
    then to the student's. The second step sends nothing to the teacher. Least, 0, where all three agree.

    Args:
        student_LBT: the student's regression r_S.
        teacher_LBT: the teacher's regression r_T.
        teacher_logits_LBTC: the teacher's logits l_T over the classes of each target.
        class_values_C: the value v each class stands for, in the units of the targets.
        distance: mean squared or mean absolute difference over targets and batch (inferred).
        teacher_weight: of the first step, one or one per lane.
        student_weight: of the second step, one or one per lane.
    """
    expected_LBT = softmax(teacher_logits_LBTC) @ class_values_C.to(teacher_logits_LBTC.dtype)
    inside_L = _distance(expected_LBT, teacher_LBT, distance)
    across_L = _distance(student_LBT, teacher_LBT.detach(), distance)
    teacher_weight_L = per_lane(teacher_weight, inside_L, trailing=0)
    return teacher_weight_L * inside_L + per_lane(student_weight, across_L, trailing=0) * across_L


def _distance(first_LBT: Tensor, second_LBT: Tensor, distance: Distance) -> Tensor:
    difference_LBT = first_LBT - second_LBT
    values_LBT = difference_LBT.square() if distance == "mse" else difference_LBT.abs()
    return weighted_mean(values_LBT.mean(dim=-1), None)
