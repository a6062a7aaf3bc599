"""The gradient of <P, C> through the optimality conditions of its plan.

Axes: L leading axes (lanes; any number), N rows, M columns.
"""

import math

import torch
from torch import Tensor

# Added to a system whose eigenvalues lie in [0, 1]: parts of a plan that no mass connects have directions
# with an eigenvalue of 0, along which there is nothing to be found.
RIDGE = 1e-12


def linear_gradient(plan_LNM: Tensor) -> Tensor:
    """Return the gradient of <P, C> with respect to C, P the entropic plan between its marginals.

    An entropic plan is exp((f_i + g_j - C_ij) / eps) a_i b_j; where C changes, f and g change such that the
    marginals stay. Hence the gradient is P (1 + R), R what is left of log P when the sum of a row part and a
    column part is taken off so that P R sums to 0 in each row and column: one linear system, solved densely
    in double precision (Luise, Rudi, Pontil and Ciliberto, 2018; Cuturi, Teboul, Niles-Weed and Vert, 2020).
    Neither C nor eps is needed. Of a problem that is not solved it is the gradient with the marginals that
    its plan has. In the number format of the plan; NaN where the plan is NaN; 0 where the plan is 0.
    """
    plan = plan_LNM.double()
    row_LN, column_LM = plan.sum(dim=-1), plan.sum(dim=-2)
    logs = torch.where(plan > 0, plan / (row_LN[..., None] * column_LM[..., None, :]), 1.0).log_()
    half_LN, half_LM = _inverse_root(row_LN), _inverse_root(column_LM)
    scaled = half_LN[..., None] * plan * half_LM[..., None, :]
    uneven = plan * logs
    side_LN, side_LM = uneven.sum(dim=-1) * half_LN, uneven.sum(dim=-2) * half_LM
    # The rows' part is eliminated; roots of masses span the direction in which f and g trade a constant.
    root_LM = column_LM.sqrt()
    system = root_LM[..., None] * root_LM[..., None, :] - scaled.mT @ scaled
    system.diagonal(dim1=-2, dim2=-1).add_(1.0 + RIDGE)
    factor, failed_L = torch.linalg.cholesky_ex(system)
    known_LM1 = (scaled.mT @ side_LN[..., None]) - side_LM[..., None]
    part_LM1 = torch.cholesky_solve(known_LM1, factor)
    part_LN1 = -(side_LN[..., None] + scaled @ part_LM1)
    rest = logs + half_LN[..., None] * part_LN1 + half_LM[..., None, :] * part_LM1.mT
    gradient = plan * (1.0 + rest)
    return torch.where((failed_L == 0)[..., None, None], gradient, math.nan).to(plan_LNM)


def _inverse_root(mass_LN: Tensor) -> Tensor:
    """Return 1 / sqrt(mass); 0 where there is none, as at a masked point."""
    return torch.where(mass_LN == 0, 0.0, mass_LN.rsqrt())
