"""Losses between the outputs of two networks.

Axes: L leading axes (lanes; any number), B batch, C classes, T targets.
"""

from torch import Tensor

from mmdistill.losses.base import LOSSES, per_lane, weighted_mean


@LOSSES.register("kd")
def kd(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Hinton, Vinyals and Dean (2015), as coded in RepDistiller `KD.py`.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    T_L11 = per_lane(temperature, student_LBC, trailing=2)
    log_student_LBC = (student_LBC / T_L11).log_softmax(dim=-1)
    log_teacher_LBC = (teacher_LBC / T_L11).log_softmax(dim=-1)
    divergence_LB = (log_teacher_LBC.exp() * (log_teacher_LBC - log_student_LBC)).sum(dim=-1)
    return weighted_mean(divergence_LB * T_L11[..., 0].square(), row_weights_LB)


@LOSSES.register("prediction_mse")
def prediction_mse(
    student_LBT: Tensor, teacher_LBT: Tensor, *, row_weights_LB: Tensor | None = None
) -> Tensor:
    """Return the squared difference of two predictions, averaged over targets and batch.

    The counterpart of :func:`kd` in regression.
    """
    return weighted_mean((student_LBT - teacher_LBT).square().mean(dim=-1), row_weights_LB)
