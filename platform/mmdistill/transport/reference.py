"""The solver against POT, on one small fixed problem; the only place that imports POT.

Axes: N rows, M columns.
"""

import ot
import torch

from mmdistill.transport.sinkhorn import solve

EPS = 0.05
TOLERANCE = 1e-10
ITERATIONS = 10_000


def deviation_from_pot() -> float:
    """Return the largest difference between our plan and POT's, relative to the largest entry of POT's.

    A problem of 7 x 5 points in double precision, solved by both until the marginal error is 1e-10; POT's
    solver is ``ot.bregman.sinkhorn_log``. About 1e-9 where all is well.
    """
    rows_N = torch.arange(7, dtype=torch.float64)
    columns_M = torch.arange(5, dtype=torch.float64)
    cost_NM = (torch.sin(rows_N)[:, None] - torch.cos(2 * columns_M)[None, :]).square()
    ours_NM = solve(cost_NM, eps=EPS, tolerance=TOLERANCE, iterations=ITERATIONS).plan_LNM
    theirs_NM = ot.bregman.sinkhorn_log(
        ot.unif(7, type_as=cost_NM),
        ot.unif(5, type_as=cost_NM),
        cost_NM,
        EPS,
        numItermax=ITERATIONS,
        stopThr=TOLERANCE,
        warn=False,
    )
    return float((ours_NM - theirs_NM).abs().max() / theirs_NM.max())
