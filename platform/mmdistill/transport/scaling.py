"""Sinkhorn's scaling iterations on a batch of problems that leave as they are solved.

A plan is P = row * kernel * column. The kernel starts smooth and is sharpened in steps of 2 to the wanted
eps ("eps-scaling"), absorbs the scalings before they leave the range of the number format (Schmitzer, 2019),
and problems that turn out slow are over-relaxed by what their own convergence suggests (Lehmann et
al., 2022).

Axes: P unsolved problems, N rows, M columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple, Self

import torch
from torch import Tensor

# Logarithm of a kernel entry below which it is dropped, before products with it become subnormal, which is
# slow; and of a scaling beyond which it moves into the kernel, before a dropped entry could carry mass.
DROP_BELOW = {torch.float32: -60.0, torch.float64: -600.0}
ABSORB_BEYOND = {torch.float32: 20.0, torch.float64: 200.0}
# Iterations between two checks, first for problems that need only a few; a kernel is sharpened at a check.
# One schedule for all, so that a problem is solved alike in any company.
FIRST_STEPS = (2, 2, 4, 4, 4, 4, 4)
LATER_STEPS = 8
# A problem whose error falls by less than this factor per iteration gains from over-relaxation; and the most
# that is tried, 2 being the limit of stability.
SLOW = 0.5
MOST_RELAXATION = 1.8
# Share of problems still open at which the solved ones are taken out, which copies the kernels of the others.
COMPACT_AT = 0.7
# Share of its mass that a point gives to the copies which stand for points that are not there: none, in
# single precision, and yet far from the end of its range.
COPY = 1e-12
# Over-relaxation is safe near the solution only: the most error for it, as a share of the norm of a.
NEAR = 0.1


class Solution(NamedTuple):
    """Plans, and what is known of them.

    Attributes:
        dual_P: (dual value - <a x b, C>) / eps.
        kl_P: KL(P || a x b), in nats.
        error_P: Euclidean norm of the error of the row sums.
        iterations: of the slowest problem.
    """

    plan_PNM: Tensor
    dual_P: Tensor
    kl_P: Tensor
    error_P: Tensor
    iterations: int


@dataclass
class Scaling:
    """Problems in progress.

    Scalings contain the masses a and b and are row vectors, because a batched product "vector times matrix"
    is several times faster than "matrix times vector"; hence the kernel is kept in both orientations.
    """

    index_P: Tensor
    a_P1N: Tensor
    b_P1M: Tensor
    log_kernel_PNM: Tensor
    kernel_PNM: Tensor
    kernel_PMN: Tensor
    row_P1N: Tensor
    column_P1M: Tensor
    # How many times smoother than wanted the problem still is.
    smooth_P: Tensor
    relaxation_P: Tensor
    # At the last check with the wanted eps; infinite before.
    error_P: Tensor

    @classmethod
    def start(
        cls, index_P: Tensor, costs_PNM: Tensor, eps_P: Tensor, a_P1N: Tensor, b_P1M: Tensor, iterations: int
    ) -> Self:
        """Return problems with a kernel at most 1 that is 1 somewhere in each row and column.

        So no row or column sum can underflow, however small eps is. All become sharp in time.
        """
        gap_PNM = costs_PNM - costs_PNM.amin(dim=2, keepdim=True)
        gap_PNM = gap_PNM - gap_PNM.amin(dim=1, keepdim=True)
        most = 2.0 ** min(iterations // LATER_STEPS, 40)
        smooth_P = (gap_PNM.mean(dim=(1, 2)) / eps_P).clamp(1.0, most)
        log_kernel_PNM = gap_PNM / -(eps_P * smooth_P)[:, None, None]
        kernel_PNM = exponential(log_kernel_PNM)
        return cls(
            index_P=index_P,
            a_P1N=a_P1N,
            b_P1M=b_P1M,
            log_kernel_PNM=log_kernel_PNM,
            kernel_PNM=kernel_PNM,
            kernel_PMN=kernel_PNM.mT.contiguous(),
            row_P1N=a_P1N,
            column_P1M=b_P1M,
            smooth_P=smooth_P,
            relaxation_P=torch.ones_like(eps_P),
            error_P=torch.full_like(eps_P, math.inf),
        )

    def advance(self, steps: int) -> Tensor:
        """Make ``steps`` iterations, the last one exact in the columns; return the error of the rows."""
        relaxed = bool((self.relaxation_P > 1).any())
        power_P11 = self.relaxation_P[:, None, None]
        for step in range(1, steps + 1):
            row_P1N = self.a_P1N / torch.bmm(self.column_P1M, self.kernel_PMN)
            self.row_P1N = _relax(self.row_P1N, row_P1N, power_P11) if relaxed else row_P1N
            column_P1M = self.b_P1M / torch.bmm(self.row_P1N, self.kernel_PNM)
            last = step == steps
            self.column_P1M = (
                _relax(self.column_P1M, column_P1M, power_P11) if relaxed and not last else column_P1M
            )
        sums_P1N = self.row_P1N * torch.bmm(self.column_P1M, self.kernel_PMN)
        return length(sums_P1N - self.a_P1N)

    def solved(self, error_P: Tensor, tolerance: float) -> Tensor:
        """Return which problems are done; one whose error is NaN is, for it cannot get better."""
        return ~(error_P > tolerance) & (self.smooth_P <= 1)

    def adapt(self, error_P: Tensor, steps: int) -> None:
        """Choose over-relaxation from the progress of the last ``steps``, sharpen, and absorb if needed."""
        wanted_P = self.smooth_P <= 1
        rate_P = (error_P / self.error_P).pow(1 / steps)
        better_P = torch.maximum(self.relaxation_P, best_relaxation(rate_P, self.relaxation_P))
        safe_P = (error_P < NEAR * length(self.a_P1N)) & (rate_P < 1)
        self.relaxation_P = torch.where(safe_P, better_P, 1.0)
        self.error_P = torch.where(wanted_P, error_P, math.inf)
        log_row_P1N, log_column_P1M = self.log_scalings()
        largest = torch.maximum(log_row_P1N.abs().amax(), log_column_P1M.abs().amax())
        if bool(wanted_P.all() & (largest < ABSORB_BEYOND[largest.dtype])):
            return
        sharpen_P = self.smooth_P.clamp(1.0, 2.0)
        self.smooth_P = self.smooth_P / sharpen_P
        self.log_kernel_PNM = self.log_kernel_PNM + log_row_P1N.mT + log_column_P1M
        self.log_kernel_PNM *= sharpen_P[:, None, None]
        self.kernel_PNM = exponential(self.log_kernel_PNM)
        self.kernel_PMN = self.kernel_PNM.mT.contiguous()
        self.row_P1N, self.column_P1M = self.a_P1N, self.b_P1M

    def log_scalings(self) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the scalings without the masses."""
        return (self.row_P1N / self.a_P1N).log_(), (self.column_P1M / self.b_P1M).log_()

    def plans(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :func:`finish` says of the problems at some positions."""
        return finish(
            self.log_kernel_PNM[at],
            self.kernel_PNM[at],
            (self.row_P1N[at], self.column_P1M[at]),
            (self.a_P1N[at], self.b_P1M[at]),
        )

    def only(self, keep: Tensor) -> "Scaling":
        """Return the problems at some positions."""
        return Scaling(**{name: tensor[keep] for name, tensor in vars(self).items()})


def solve(
    costs_PNM: Tensor, eps_P: Tensor, a_P1N: Tensor, b_P1M: Tensor, *, tolerance: float, iterations: int
) -> Solution:
    """Solve problems whose costs are all finite."""
    everything = torch.arange(len(costs_PNM), device=costs_PNM.device)
    state = Scaling.start(everything, costs_PNM, eps_P, a_P1N, b_P1M, iterations)
    plan_PNM = torch.empty_like(costs_PNM)
    dual_P, kl_P, found_P = torch.empty_like(eps_P), torch.empty_like(eps_P), torch.empty_like(eps_P)
    open_P = torch.ones_like(everything, dtype=torch.bool)
    used = 0
    for steps in _steps_between_checks(iterations):
        error_P = state.advance(steps)
        used += steps
        done = (open_P & (state.solved(error_P, tolerance) | (used == iterations))).nonzero()[:, 0]
        if len(done):
            at = state.index_P[done]
            plan_PNM[at], dual_P[at], kl_P[at] = state.plans(done)
            found_P[at] = error_P[done]
            open_P[done] = False
            still = open_P.nonzero()[:, 0]
            if not len(still):
                break
            if len(still) <= COMPACT_AT * len(open_P):
                state, error_P, open_P = state.only(still), error_P[still], open_P[still]
        state.adapt(error_P, steps)
    return Solution(plan_PNM, dual_P, kl_P, found_P, used)


def _steps_between_checks(iterations: int) -> Iterator[int]:
    """Yield numbers of steps that sum to ``iterations``."""
    used = 0
    for steps in chain(FIRST_STEPS, repeat(LATER_STEPS)):
        yield min(steps, iterations - used)
        used += steps
        if used >= iterations:
            return


def best_relaxation(rate_P: Tensor, relaxation_P: Tensor) -> Tensor:
    """Return the over-relaxation that suits errors falling by ``rate_P`` per iteration, in [1, 1.8].

    With w the relaxation in use, the rate of the plain iteration is r = (rate + w - 1)^2 / (rate w^2), and
    the best relaxation 2 / (1 + sqrt(1 - r)) (Young, 1954; Lehmann et al., 2022). 1 where that is fast.
    """
    plain_P = (rate_P + relaxation_P - 1).square() / (rate_P * relaxation_P.square())
    best_P = 2 / (1 + (1 - plain_P).clamp_min(0.0).sqrt())
    return torch.where(plain_P > SLOW, best_P.clamp(1.0, MOST_RELAXATION), 1.0)


def solve_self(
    costs_PNN: Tensor, eps_P: Tensor, a_P1N: Tensor, *, tolerance: float, iterations: int
) -> Solution:
    """Solve transports of clouds to themselves.

    The two scalings are one, updated by the geometric mean of the old and the new (Feydy et al., 2019,
    section 3.1): each iteration about halves the error or better, for any eps.
    """
    log_kernel_PNN = costs_PNN / -eps_P[:, None, None]
    kernel_PNN = exponential(log_kernel_PNN)
    scaling_P1N, used = a_P1N, 0
    while True:
        sums_P1N = scaling_P1N * torch.bmm(scaling_P1N, kernel_PNN)
        mass_P11 = sums_P1N.sum(dim=2, keepdim=True)
        error_P = length(sums_P1N / mass_P11 - a_P1N)
        open_P11 = (error_P > tolerance)[:, None, None]
        if used >= iterations or not bool(open_P11.any()):
            break
        scaling_P1N = torch.where(open_P11, scaling_P1N * (a_P1N / sums_P1N).sqrt_(), scaling_P1N)
        used += 1
    # Averaged updates keep neither marginal exactly, hence neither the mass.
    scaling_P1N = scaling_P1N / mass_P11.sqrt()
    scalings, masses = (scaling_P1N, scaling_P1N), (a_P1N, a_P1N)
    return Solution(*finish(log_kernel_PNN, kernel_PNN, scalings, masses), error_P, used)


def finish(
    log_kernel_PNM: Tensor,
    kernel_PNM: Tensor,
    scalings: tuple[Tensor, Tensor],
    masses: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return plan_PNM, dual_P and kl_P, logarithms of the plan taken from their three summands."""
    row_P1N, column_P1M = scalings
    a_P1N, b_P1M = masses
    plan_PNM = row_P1N.mT * kernel_PNM * column_P1M
    log_row_P1N, log_column_P1M = (row_P1N / a_P1N).log_(), (column_P1M / b_P1M).log_()
    kl_P = (plan_PNM * log_kernel_PNM).sum(dim=(1, 2))
    kl_P = kl_P + (plan_PNM.sum(dim=2) * log_row_P1N[:, 0]).sum(dim=1)
    kl_P = kl_P + (plan_PNM.sum(dim=1) * log_column_P1M[:, 0]).sum(dim=1)
    dual_P = torch.bmm(torch.bmm(a_P1N, log_kernel_PNM), b_P1M.mT)[:, 0, 0] + (1 - plan_PNM.sum(dim=(1, 2)))
    dual_P = dual_P + (a_P1N * log_row_P1N).sum(dim=(1, 2)) + (b_P1M * log_column_P1M).sum(dim=(1, 2))
    return plan_PNM, dual_P, kl_P


def with_copies(costs_PNM: Tensor, a_P1N: Tensor, b_P1M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs and masses in which each point without mass is a copy of the first point that has some.

    Copies of a point share its scaling, so the other points are transported as if there were none.
    """
    (rows_PN, a_P1N), (columns_PM, b_P1M) = _copies(a_P1N), _copies(b_P1M)
    problems_P11 = torch.arange(len(costs_PNM), device=costs_PNM.device)[:, None, None]
    return costs_PNM[problems_P11, rows_PN[:, :, None], columns_PM[:, None, :]], a_P1N, b_P1M


def _copies(mass_P1N: Tensor) -> tuple[Tensor, Tensor]:
    """Return which point stands at each place, and its mass."""
    there_PN = mass_P1N[:, 0] > 0
    first_P1 = there_PN.int().argmax(dim=1, keepdim=True)
    places_N = torch.arange(there_PN.shape[1], device=mass_P1N.device)
    copied_P1N = COPY * mass_P1N.gather(2, first_P1[:, None])
    return torch.where(there_PN, places_N, first_P1), torch.where(mass_P1N > 0, mass_P1N, copied_P1N)


def exponential(log_kernel_PNM: Tensor) -> Tensor:
    """Return the kernel without its negligible entries."""
    least = DROP_BELOW[log_kernel_PNM.dtype]
    # Clamped first, because exp of large negative numbers is ten times slower.
    return torch.threshold_(log_kernel_PNM.clamp_min(least).exp_(), 2 * math.exp(least), 0.0)


def length(vector_P1N: Tensor) -> Tensor:
    """Return the Euclidean norm of each vector."""
    return vector_P1N.square().sum(dim=(1, 2)).sqrt()


def _relax(old: Tensor, new: Tensor, power_P11: Tensor) -> Tensor:
    return old * (new / old).pow(power_P11)
