"""Losses between the geometries of two batches: distances, angles, neighbours.

Axes: L leading axes (lanes; any number), B batch, D width, N neighbours.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from mmdistill.losses.base import loss, per_lane, unit_rows, unit_scale
from mmdistill.losses.distances import distances, off_diagonal, squared_distances

LEAST_SQUARED_DISTANCE = 1e-12


@loss(
    "rkd",
    source="Park et al. 2019; lenscloth RKD metric/loss.py; RepDistiller distiller_zoo/RKD.py",
    needs=("features",),
    distance_weight=(1.0, 100.0),
    angle_weight=(1.0, 200.0),
)
def rkd(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    distance_weight: float | Tensor = 25.0,
    angle_weight: float | Tensor = 50.0,
) -> Tensor:
    """Return distance_weight * Huber(distances) + angle_weight * Huber(angles).

    Relational knowledge distillation (Park et al., 2019; RepDistiller `RKD.py`): the Huber losses have
    delta = 1 and are averaged over B^2 distances and B^3 angles, those of a sample with itself included.
    Widths may differ. Least, 0, at the teacher.

    Args:
        student_LBD: features.
        teacher_LBD: features.
        distance_weight: one or one per lane.
        angle_weight: one or one per lane.
    """
    distance_L, angle_L = rkd_distance(student_LBD, teacher_LBD), rkd_angle(student_LBD, teacher_LBD)
    distance_weight_L = per_lane(distance_weight, distance_L, trailing=0)
    return distance_weight_L * distance_L + per_lane(angle_weight, angle_L, trailing=0) * angle_L


def rkd_distance(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return the Huber loss between distances divided by their mean over pairs of different samples.

    Equal samples are 1e-6 apart, as in the reference code, and push nothing; a batch of one gives 0.
    """
    return _huber(_relative_distances(student_LBD), _relative_distances(teacher_LBD))


def _relative_distances(features_LBD: Tensor) -> Tensor:
    distances_LBB = distances(features_LBD, floor=LEAST_SQUARED_DISTANCE) * off_diagonal(features_LBD)
    batch = features_LBD.shape[-2]
    mean_L11 = distances_LBB.sum(dim=(-2, -1), keepdim=True) / max(batch * (batch - 1), 1)
    return distances_LBB / torch.where(mean_L11 == 0, 1.0, mean_L11)


def rkd_angle(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return the Huber loss between cosines of the angles at sample i between the ways to j and k.

    The way between equal samples has no direction: the cosine is 0, without gradient.
    """
    return _huber(_angles(student_LBD), _angles(teacher_LBD))


def _angles(features_LBD: Tensor) -> Tensor:
    """Return cos(i; j, k) of every sample i and every pair of others, as a matrix [L, B, B^2]."""
    scaled_LBD = unit_scale(features_LBD, (-2, -1))
    way_LBBD = scaled_LBD[..., None, :, :] - scaled_LBD[..., :, None, :]
    length_LBB1: Tensor = torch.linalg.vector_norm(way_LBBD, dim=-1, keepdim=True)
    # Fewer passes over the largest tensor than `unit_rows`; no way, no direction, no gradient.
    inverse_LBB1 = torch.where(length_LBB1 == 0, 1.0, length_LBB1).reciprocal() * (length_LBB1 != 0)
    direction_LBBD = way_LBBD * inverse_LBB1
    return (direction_LBBD @ direction_LBBD.mT).flatten(-2)


def _huber(first_LBB: Tensor, second_LBB: Tensor) -> Tensor:
    return smooth_l1_loss(first_LBB, second_LBB, reduction="none").mean(dim=(-2, -1))


@loss(
    "samm",
    source="Sarfraz et al. 2024 (SAMM); MultiModal-CL models/utils/relational_distillation.py",
    needs=("logits",),
)
def samm(student_LBC: Tensor, teacher_LBC: Tensor) -> Tensor:
    """Return the Huber loss between distances of outputs of length 1, divided by their mean over B^2 pairs.

    The cross-modal alignment of SAMM (MultiModal-CL `relational_distillation.py`, weight 25): unlike
    :func:`rkd_distance` rows are normalised first, and the mean counts each sample's distance to itself
    (1e-6, the floor) and gets 1e-8 more. Least, 0, at the teacher; equal rows push nothing.

    Args:
        student_LBC: logits of one modality.
        teacher_LBC: logits of the other.
    """
    student_LBB, teacher_LBB = (
        distances(unit_rows(z_LBC), floor=LEAST_SQUARED_DISTANCE) for z_LBC in (student_LBC, teacher_LBC)
    )
    return _huber(
        student_LBB / (student_LBB.mean(dim=(-2, -1), keepdim=True) + 1e-8),
        teacher_LBB / (teacher_LBB.mean(dim=(-2, -1), keepdim=True) + 1e-8),
    )


@loss(
    "darkrank",
    source="Chen, Wang and Zhang 2018; lenscloth RKD metric/loss.py HardDarkRank",
    needs=("features",),
    alpha=(0.1, 10.0),
    beta=(1.0, 4.0),
    length=(2, 16),
)
def darkrank(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    alpha: float | Tensor = 3.0,
    beta: float | Tensor = 3.0,
    length: int = 4,
) -> Tensor:
    """Return -log P of the order of the teacher's nearest neighbours under the student, mean over samples.

    P is the Plackett-Luce likelihood of that order among those neighbours with the scores -alpha d^beta of
    the student's distances (DarkRank, Chen, Wang and Zhang, 2018; lenscloth RKD `HardDarkRank`, on embeddings
    of length 1). Widths may differ. Equally near neighbours are taken in the order of the batch. Not least at
    the teacher: greater distances make the same order surer. Fewer than 3 samples give 0.

    Args:
        student_LBD: features.
        teacher_LBD: features.
        alpha: > 0, one or one per lane.
        beta: > 0, one or one per lane.
        length: number of neighbours in order, capped at B - 1.
    """
    student_LBB = squared_distances(student_LBD).clamp_min(LEAST_SQUARED_DISTANCE)
    half_L11 = per_lane(beta, student_LBB, trailing=2) / 2
    score_LBB = -per_lane(alpha, student_LBB, trailing=2) * student_LBB.pow(half_L11)
    teacher_LBB = squared_distances(teacher_LBD.detach()).clamp_min(LEAST_SQUARED_DISTANCE)
    itself_BB = off_diagonal(teacher_LBD) == 0
    order_LBB = teacher_LBB.masked_fill(itself_BB, math.inf).sort(dim=-1, stable=True).indices
    length = min(length, student_LBD.shape[-2] - 1)
    nearest_LBN = score_LBB.gather(-1, order_LBB[..., :length])
    total_LB = nearest_LBN.sum(dim=-1)
    for n in range(length):
        total_LB = total_LB - nearest_LBN[..., n:].logsumexp(dim=-1)
    return -total_LB.mean(dim=-1)
