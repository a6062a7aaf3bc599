"""Losses between the features of two networks, sample by sample.

Axes: L leading axes (lanes; any number), B batch, C classes, D width.
"""

from torch import Tensor

from mmdistill.losses.base import known_labels, loss, unit_rows, weighted_mean


@loss("fitnet", source="Romero et al. 2015; RepDistiller distiller_zoo/FitNet.py", needs=("features",))
def fitnet(mapped_LBD: Tensor, teacher_LBD: Tensor, *, row_weights_LB: Tensor | None = None) -> Tensor:
    """Return mean((r(student) - teacher)^2) over batch and width, from the already mapped r(student).

    The hint of FitNets (Romero et al., 2015; RepDistiller `FitNet.py`), r a learned regressor. Least, 0, at
    the teacher.

    Args:
        mapped_LBD: the student's features behind the regressor.
        teacher_LBD: the teacher's features.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    return weighted_mean((mapped_LBD - teacher_LBD).square().mean(dim=-1), row_weights_LB)


@loss("pkd_cos", source="Aslam et al. 2023 (M2PKD); MMPKD mmpkd.py", needs=("features",))
def pkd_cos(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return 1 - cos(vec student, vec teacher), one cosine over the flattened batch, in [0, 2].

    The point-to-point loss of M2PKD (Aslam et al., 2023; MMPKD `mmpkd.py`, MT-PKDOT `biovid_pkd.py`). Least,
    0, at any positive multiple of the teacher; features of zeros count as perpendicular and give 1 without
    gradient.
    """
    return 1.0 - (unit_rows(student_LBD.flatten(-2)) * unit_rows(teacher_LBD.flatten(-2))).sum(dim=-1)


@loss(
    "class_prototypes",
    source="Zhang et al. 2023 (unseen modality interaction); Unseen-Modality-Interaction train.py",
    needs=("features", "labels"),
    tasks="classification",
)
def class_prototypes(
    student_LBD: Tensor,
    prototypes_LCD: Tensor,
    labels_LB: Tensor,
    *,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return the squared distance of features to the prototype of their class, averaged over D and the batch.

    The alignment of unseen modality interaction (Zhang et al., 2023; `AlignmentModule` of its `train.py`): a
    modality that a sample does not have is a row of weight 0. The prototypes are learned and get a gradient.
    Least, 0, at the prototypes.

    Args:
        student_LBD: features, averaged over the tokens of one modality.
        prototypes_LCD: one row per class.
        labels_LB: class indices; any value on rows without weight.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    labels_LB1 = known_labels(labels_LB, row_weights_LB)[..., None]
    own_LBD = prototypes_LCD.gather(-2, labels_LB1.expand(*labels_LB1.shape[:-1], student_LBD.shape[-1]))
    return weighted_mean((own_LBD - student_LBD).square().mean(dim=-1), row_weights_LB)
