"""Losses that turn one set of features towards another.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

from torch import Tensor

from mmdistill.losses.base import loss, unit_rows


@loss(
    "cosine_alignment",
    source="Aslam et al. 2024 (MT-PKDOT), equation 1; MT-PKDOT mtpkdot.py train_self_distil_wadn",
    needs=("features",),
)
def cosine_alignment(adapted_LBD: Tensor, joint_LBD: Tensor) -> Tensor:
    """Return the mean over the batch of 1 - cos(adapted, joint), in [0, 2].

    The alignment of MT-PKDOT's teachers (equation 1; `CosineEmbeddingLoss` with target +1 in its code), with
    a gradient to both sides. A row of zeros counts as perpendicular.
    """
    cosine_LB = (unit_rows(adapted_LBD) * unit_rows(joint_LBD)).sum(dim=-1)
    return 1.0 - cosine_LB.mean(dim=-1)
