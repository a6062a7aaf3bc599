"""Losses that follow another network only where a gate says so.

Axes: L leading axes (lanes; any number), B batch, C classes, M modalities, T targets.
"""

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.losses.base import known_labels, loss, per_lane, weighted_mean
from mmdistill.losses.ranking import top_classes
from mmdistill.losses.softened import divergence, softened_divergence
from mmdistill.softmax import log_softmax


@loss(
    "skd_gate",
    source="Speculative KD (Xu et al. 2025), transferred to classification (inferred)",
    needs=("logits",),
    tasks="classification",
    k=(1, 20),
    temperature=(1.0, 20.0),
)
def skd_gate(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    k: int | Tensor = 1,
    temperature: float | Tensor = 4.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return a T^2 KL(p_T || p_S) + (1 - a) CE(student, argmax teacher), averaged over the batch.

    a = 1 on rows where the student's first class is among the teacher's first k, else 0: speculative
    knowledge distillation (Xu et al., 2025) for one prediction instead of a sequence, with the teacher's
    first class in the place of a sampled one; k is meant to fall. Least, 0, at the teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        k: in [1, C), one or one per lane.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.

    Raises:
        NumericsError: if ``k`` is below 1, or so great that every class is accepted.
    """
    k_L, classes = torch.as_tensor(k), student_LBC.shape[-1]
    outside_L = (k_L < 1) | (k_L >= classes)
    if bool(outside_L.any()):
        worst = int(k_L[outside_L].flatten()[0])
        raise NumericsError(f"`k` must be >= 1 and below the {classes} classes, but is {worst}")
    first_LB1 = student_LBC.argmax(dim=-1, keepdim=True)
    accepted_LB = top_classes(teacher_LBC, k).gather(-1, first_LB1)[..., 0]
    target_LB1 = teacher_LBC.argmax(dim=-1, keepdim=True)
    hard_LB = -log_softmax(student_LBC).gather(-1, target_LB1)[..., 0]
    soft_LB = softened_divergence(student_LBC, teacher_LBC, temperature)
    return weighted_mean(torch.where(accepted_LB, soft_LB, hard_LB), row_weights_LB)


@loss(
    "weak_mutual",
    source="IterWeGO (MM 2024), weak guidance on class probabilities (inferred); IterWeGO model.py",
    needs=("logits",),
    tasks="classification",
    threshold=(0.0, 0.99),
)
def weak_mutual(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    threshold: float | Tensor = 0.9,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return m KL(p_guide || p_learner), averaged over the whole batch, m = 1 where max p_guide >= threshold.

    One direction of the weak mutual guidance of IterWeGO: the guide speaks only where it is confident. Rows
    below the threshold count as 0. Least, 0, at the guide.

    Args:
        student_LBC: logits of the learner.
        teacher_LBC: logits of the guide.
        threshold: least confidence, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    log_p_LBC = log_softmax(teacher_LBC)
    confidence_LB = log_p_LBC.detach().amax(dim=-1).exp()
    sure_LB = confidence_LB >= per_lane(threshold, confidence_LB, trailing=1)
    rows_LB = divergence(log_p_LBC, log_softmax(student_LBC)) * sure_LB
    return weighted_mean(rows_LB, row_weights_LB)


# Bounds of a row's advantage before the advantages are made to sum to 1.
LEAST_ADVANTAGE, MOST_ADVANTAGE = 0.01, 100.0


def advantages(peer_LB: Tensor, own_LB: Tensor, alpha: float | Tensor) -> Tensor:
    """Return clip(exp(alpha (peer - own)), 0.01, 100) of two values of each row, without gradient.

    Dual policy distillation (Lai, Zha, Li and Hu, 2020; `dpd_ddpg/ddpg.py`).
    """
    gain_LB = (peer_LB - own_LB).detach() * per_lane(alpha, own_LB, trailing=1)
    return gain_LB.exp().clamp(LEAST_ADVANTAGE, MOST_ADVANTAGE)


def _advantage_mean(rows_LB: Tensor, advantages_LB: Tensor, row_weights_LB: Tensor | None) -> Tensor:
    return weighted_mean(rows_LB, advantages_LB if row_weights_LB is None else advantages_LB * row_weights_LB)


@loss(
    "peer_advantage",
    source="Dual policy distillation (Lai et al. 2020), its supervised analogue (inferred); dpd_ddpg/ddpg.py",
    needs=("logits", "labels"),
    tasks="classification",
    alpha=(0.1, 5.0),
)
def peer_advantage(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    labels_LB: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return sum_i w_i KL(p_peer || p_own), w the advantages of the peer made to sum to 1.

    A row's value is minus its cross entropy: where the peer knows the label better it weighs more. Least, 0,
    at the peer.

    Args:
        student_LBC: own logits.
        teacher_LBC: logits of the peer.
        labels_LB: class indices; any value on rows without weight.
        alpha: > 0, how much an advantage counts, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    labels_LB1 = known_labels(labels_LB, row_weights_LB)[..., None]
    log_own_LBC, log_peer_LBC = log_softmax(student_LBC), log_softmax(teacher_LBC)
    own_LB, peer_LB = (log_LBC.gather(-1, labels_LB1)[..., 0] for log_LBC in (log_own_LBC, log_peer_LBC))
    weights_LB = advantages(peer_LB, own_LB, alpha)
    return _advantage_mean(divergence(log_peer_LBC, log_own_LBC), weights_LB, row_weights_LB)


@loss(
    "peer_advantage_regression",
    source="Dual policy distillation (Lai et al. 2020), its supervised analogue (inferred); dpd_ddpg/ddpg.py",
    needs=("logits", "labels"),
    tasks="regression",
    alpha=(0.1, 5.0),
)
def peer_advantage_regression(
    student_LBT: Tensor,
    teacher_LBT: Tensor,
    labels_LBT: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return sum_i w_i (own - peer)^2 as :func:`peer_advantage`, a row's value minus its absolute error.

    Squares and absolute errors are averaged over targets. Least, 0, at the peer.

    Args:
        student_LBT: own predictions.
        teacher_LBT: predictions of the peer.
        labels_LBT: targets; any finite value on rows without weight.
        alpha: > 0, per unit of the targets, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    own_LB, peer_LB = (-(p_LBT - labels_LBT).abs().mean(dim=-1) for p_LBT in (student_LBT, teacher_LBT))
    weights_LB = advantages(peer_LB, own_LB, alpha)
    return _advantage_mean((student_LBT - teacher_LBT).square().mean(dim=-1), weights_LB, row_weights_LB)
