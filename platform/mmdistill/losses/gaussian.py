"""Losses that treat one network's features as a Gaussian around a map of the other's.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus

from mmdistill.losses.base import loss

# Least variance, as in the reference code.
LEAST_VARIANCE = 1e-5
# The variance with which the reference code begins, before softplus.
FIRST_RHO = math.log(math.expm1(5.0 - LEAST_VARIANCE))


@loss("vid", source="Ahn et al. 2019, equation 5; RepDistiller distiller_zoo/VID.py", needs=("features",))
def vid(mean_LBD: Tensor, teacher_LBD: Tensor, *, rho: Tensor | None = None) -> Tensor:
    """Return mean 1/2 [(mean - teacher)^2 / variance + log variance], variance = softplus(rho) + 1e-5.

    Variational information distillation (Ahn et al., 2019, equation 5; RepDistiller `VID.py`): up to a
    constant the Gaussian upper bound of H(teacher | student) per feature, in nats; may be negative.

    Args:
        mean_LBD: prediction of the teacher's features from the student's.
        teacher_LBD: the teacher's features.
        rho: raw variances [L, D]; by default those of a variance of 5, with which the reference code begins.
    """
    rho = teacher_LBD.new_full(teacher_LBD.shape[-1:], FIRST_RHO) if rho is None else rho
    variance_L1D = softplus(rho).unsqueeze(-2) + LEAST_VARIANCE
    deviance_LBD = (mean_LBD - teacher_LBD).square() / variance_L1D + variance_L1D.log()
    return 0.5 * deviance_LBD.mean(dim=(-2, -1))
