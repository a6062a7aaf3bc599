"""Losses between orders: of classes, of samples, of pairs.

Axes: L leading axes (lanes; any number), B batch, C classes, T targets, R rows, I items to rank.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmdistill.errors import NumericsError
from mmdistill.losses.base import loss, per_lane, unit_rows, weighted_mean


def top_classes(logits_LBC: Tensor, k: int | Tensor) -> Tensor:
    """Return which classes [L, B, C] are among the k of greatest logits; of equal ones the first."""
    place_LBC = logits_LBC.detach().sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    return place_LBC < torch.as_tensor(k, device=logits_LBC.device)[..., None, None]


@loss(
    "rlkd",
    source="RLKD (COLING 2025), first page; soft rank inferred",
    needs=("logits",),
    tasks="classification",
    k=(2, 20),
    temperature=(0.01, 10.0),
)
def rlkd(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    *,
    k: int | Tensor = 5,
    temperature: float | Tensor = 1.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return 1 - rank correlation of the logits over the top-k classes of either, averaged over the batch.

    Spearman's: the correlation of the teacher's ranks (ties share theirs) with the student's soft ranks
    r_c = 1/2 + sum over the other classes c' of sigmoid((l_c' - l_c) / temperature), both among the union of
    the k classes each puts first. In [0, 2]; near 0, not least, at the teacher, since soft ranks depend on
    margins. A row whose teacher ranks nothing (all equal) gives 0; equal logits of the student give 1, both
    without gradient.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        k: >= 2, one or one per lane.
        temperature: of the soft ranks, > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.

    Raises:
        NumericsError: with fewer than 3 classes or k < 2: two ranks agree or not, whatever the margin.
    """
    classes = student_LBC.shape[-1]
    if classes < 3:
        raise NumericsError(f"`student_LBC` must have >= 3 classes to rank, but has {classes}")
    if bool((torch.as_tensor(k) < 2).any()):
        raise NumericsError(f"`k` must be >= 2, but is {int(torch.as_tensor(k).min())}")
    union_LBC = top_classes(student_LBC, k) | top_classes(teacher_LBC, k)
    return weighted_mean(_disagreement(student_LBC, teacher_LBC, union_LBC, temperature), row_weights_LB)


@loss(
    "rlkd_batch",
    source="RLKD (COLING 2025), its ranks taken over samples (inferred)",
    needs=("logits",),
    tasks="regression",
    temperature=(0.01, 10.0),
)
def rlkd_batch(student_LBT: Tensor, teacher_LBT: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Return 1 - rank correlation of predictions over the batch, averaged over targets.

    As :func:`rlkd` with the samples of the batch in the place of classes. Targets the teacher does not rank,
    and a batch of one, give 0.

    Args:
        student_LBT: predictions.
        teacher_LBT: predictions.
        temperature: of the soft ranks, > 0, in the units of the targets, one or one per lane.
    """
    student_LTB, teacher_LTB = student_LBT.mT, teacher_LBT.mT
    everything_LTB = torch.ones_like(student_LTB, dtype=torch.bool)
    return _disagreement(student_LTB, teacher_LTB, everything_LTB, temperature).mean(dim=-1)


def _disagreement(
    student_LRI: Tensor, teacher_LRI: Tensor, kept_LRI: Tensor, temperature: float | Tensor
) -> Tensor:
    """Return 1 - correlation between soft and hard ranks among the kept items; 0 where none is ahead."""
    tau_L111 = per_lane(temperature, student_LRI, trailing=3)
    soft_LRII = ((student_LRI[..., None, :] - student_LRI[..., :, None]) / tau_L111).sigmoid()
    teacher_LRI = teacher_LRI.detach()
    # 1 behind, 0 ahead, 1/2 beside; an item beside itself adds a constant to every rank.
    hard_LRII = 0.5 + 0.5 * (teacher_LRI[..., None, :] - teacher_LRI[..., :, None]).sign()
    soft_LRI, hard_LRI = (
        _centred((behind_LRII * kept_LRI[..., None, :]).sum(dim=-1), kept_LRI)
        for behind_LRII in (soft_LRII, hard_LRII)
    )
    correlation_LR = (unit_rows(soft_LRI) * unit_rows(hard_LRI)).sum(dim=-1)
    ordered_LR = (hard_LRI != 0).any(dim=-1)
    return torch.where(ordered_LR, 1 - correlation_LR, 0.0)


def _centred(ranks_LRI: Tensor, kept_LRI: Tensor) -> Tensor:
    count_LR1 = kept_LRI.sum(dim=-1, keepdim=True)
    mean_LR1 = (ranks_LRI * kept_LRI).sum(dim=-1, keepdim=True) / count_LR1
    return (ranks_LRI - mean_LR1) * kept_LRI


@loss(
    "pairwise_order",
    source="IterWeGO (MM 2024); IterWeGO model.py loss1 (pairs), its confidence gate",
    needs=("logits",),
    tasks="regression",
    threshold=(0.5, 0.99),
)
def pairwise_order(student_LBB: Tensor, teacher_LBB: Tensor, *, threshold: float | Tensor = 0.9) -> Tensor:
    """Return the binary cross entropy of pairwise orders where the teacher is confident, mean over those.

    Entry (i, j) is the logit that i comes before j; for predictions their difference over a temperature. A
    pair counts if the teacher gives one of the two orders a probability >= threshold and no tie; that order
    is the target. Two logits per pair as in IterWeGO `model.py` are this with their difference. No confident
    pair: 0 without gradient.

    Args:
        student_LBB: order logits.
        teacher_LBB: order logits, or a large positive or negative number where the order is known.
        threshold: in [0.5, 1), one or one per lane.
    """
    teacher_LBB = teacher_LBB.detach()
    itself_BB = torch.eye(student_LBB.shape[-1], dtype=torch.bool, device=student_LBB.device)
    sure_LBB = teacher_LBB.abs().sigmoid() >= per_lane(threshold, student_LBB, trailing=2)
    counted_LBB = sure_LBB & (teacher_LBB != 0) & ~itself_BB
    cost_LBB = softplus(-student_LBB * teacher_LBB.sign())
    return weighted_mean(cost_LBB.flatten(-2), counted_LBB.flatten(-2))
