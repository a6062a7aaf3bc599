"""Losses between the outputs of two networks.

Axes: L leading axes (lanes; any number), B batch, C classes, T targets.
"""

from torch import Tensor

from mmdistill.losses.base import loss, per_lane, weighted_mean
from mmdistill.softmax import log_softmax, softmax


def divergence(log_p_LBC: Tensor, log_q_LBC: Tensor) -> Tensor:
    """Return KL(p || q) of each row from logarithms of probabilities, in nats."""
    return (log_p_LBC.exp() * (log_p_LBC - log_q_LBC)).sum(dim=-1)


def softened_divergence(
    student_LBC: Tensor, teacher_LBC: Tensor, temperature: float | Tensor, *, trailing: int = 2
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        temperature: T > 0, one or one per lane.
        trailing: number of axes behind the lanes.
    """
    T_L11 = per_lane(temperature, student_LBC, trailing)
    rows_LB = divergence(log_softmax(teacher_LBC / T_L11), log_softmax(student_LBC / T_L11))
    return rows_LB * T_L11[..., 0].square()


@loss(
    "kd",
    source="Hinton, Vinyals and Dean 2015; RepDistiller distiller_zoo/KD.py",
    needs=("logits",),
    tasks="classification",
    temperature=(1.0, 20.0),
)
def kd(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Hinton, Vinyals and Dean (2015), as coded in RepDistiller `KD.py`. Least, 0, at logits that differ from
    the teacher's by one constant per row; constant with one class.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    return weighted_mean(softened_divergence(student_LBC, teacher_LBC, temperature), row_weights_LB)


@loss(
    "softce",
    source="Hinton, Vinyals and Dean 2015; probabilistic_kt nn/distillation.py",
    needs=("logits",),
    tasks="classification",
    temperature=(1.0, 20.0),
)
def softce(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return -sum_c p log q, averaged over the batch; p and q are softened by T, without the factor T^2.

    The soft cross entropy of probabilistic_kt `distillation.py`: (:func:`kd` / T^2) plus the teacher's
    entropy, which is its least value, at the teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    T_L11 = per_lane(temperature, student_LBC, trailing=2)
    log_q_LBC = log_softmax(student_LBC / T_L11)
    cross_LB = -(softmax(teacher_LBC / T_L11) * log_q_LBC).sum(dim=-1)
    return weighted_mean(cross_LB, row_weights_LB)


@loss(
    "skl",
    source="Chen et al. 2021 (CCL); CCL loss/jsd_loss.py",
    needs=("logits",),
    tasks="classification",
)
def skl(student_LBC: Tensor, teacher_LBC: Tensor, *, row_weights_LB: Tensor | None = None) -> Tensor:
    """Return KL(p || q) + KL(q || p) of the two softmaxes, averaged over the batch.

    CCL `jsd_loss.py` (whose class is called JSD) without its 1e-10 inside the logarithm, which changes the
    value by less than 1e-9 and fails where a probability underflows. Least, 0, at the teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    log_p_LBC, log_q_LBC = log_softmax(student_LBC), log_softmax(teacher_LBC)
    both_LB = ((log_p_LBC.exp() - log_q_LBC.exp()) * (log_p_LBC - log_q_LBC)).sum(dim=-1)
    return weighted_mean(both_LB, row_weights_LB)


@loss(
    "mlld",
    source="Jin, Wang and Lin 2023; MST-Distill KD_methods/MLLD.py",
    needs=("logits",),
    tasks="classification",
)
def mlld(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Tensor:
    """Return 1/3 [kd + MSE(P^T P) + MSE(P P^T)], averaged over some temperatures.

    P holds the softened probabilities [B, C]; the squared differences of the class matrices are averaged over
    C^2, those of the sample matrices over B^2 (multi-level logit distillation in the variant of MST-Distill,
    which replaced the sums of the original and dropped its confidence masks). Least, 0, at the teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        temperatures: each > 0.
    """
    levels = []
    for T in temperatures:
        p_LBC, q_LBC = softmax(student_LBC / T), softmax(teacher_LBC / T)
        classes_L = (p_LBC.mT @ p_LBC - q_LBC.mT @ q_LBC).square().mean(dim=(-2, -1))
        samples_L = (p_LBC @ p_LBC.mT - q_LBC @ q_LBC.mT).square().mean(dim=(-2, -1))
        levels.append(kd(student_LBC, teacher_LBC, temperature=T) + classes_L + samples_L)
    total_L: Tensor = sum(levels[1:], start=levels[0])
    return total_L / (3 * len(levels))


@loss(
    "prediction_mse",
    source="counterpart of kd in regression (inferred)",
    needs=("logits",),
    tasks="regression",
)
def prediction_mse(
    student_LBT: Tensor, teacher_LBT: Tensor, *, row_weights_LB: Tensor | None = None
) -> Tensor:
    """Return the squared difference of two predictions, averaged over targets and batch.

    The counterpart of :func:`kd` in regression.
    """
    return weighted_mean((student_LBT - teacher_LBT).square().mean(dim=-1), row_weights_LB)
