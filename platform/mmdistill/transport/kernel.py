"""The compiled solver: Sinkhorn iterations on one CPU core, one problem after the other.

A plan is P = row * kernel * column. An iteration reads the kernel once: the product of a row with the column
scalings gives the new row scaling, which at once adds to the column sums (and the error of the old pair is
free). The kernel starts smooth and is sharpened to the wanted eps, absorbs the scalings before they leave the
range of the number format (Schmitzer, 2019), and problems that turn out slow are finished by Newton steps on
the dual, whose linear systems conjugate gradients solve with one more reading of the kernel each (Brauer,
Clason, Lorenz and Wirth, 2017): slow Sinkhorn means a few slow directions, which these find first.

Importing this module imports numba. What it compiles is kept for the next process, in the folder of the
environment variable NUMBA_CACHE_DIR, beside this file, or in the user's cache, whichever can be written to;
it is compiled anew when this file changes, so all that is compiled is in here.

Axes: P problems, N rows, M columns.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np

from mmdistill.transport.problem import Array, Number, Problem

Function = TypeVar("Function", bound=Callable[..., Any])

# A kernel is this many times smoother at most than the one before, and made sharper after so many iterations
# or at this share of the norm of a, whichever is first.
SHARPEN, STAGE, STAGE_ERROR = 4.0, 20, 0.02
# Newton steps begin after so many iterations whose error fell by less than this factor each.
PATIENCE, SLOW = 4, 0.7
# Bounds of a Newton step: iterations of conjugate gradients, their relative error, logarithm of a scaling.
GRADIENTS, LOOSEST, TIGHTEST, LONGEST = 100, 0.7, 0.05, 8.0


def _compiled(function: Function) -> Function:
    # Sums may be reordered, which is what lets them use vector units; NaN and infinity keep their meaning.
    compiler = partial(numba.njit, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    try:
        return cast("Function", compiler(cache=True)(function))
    except RuntimeError:
        # There is no folder to keep it in, so every process compiles for itself.
        return cast("Function", compiler()(function))


@_compiled
def _exponentiate(problem: Problem, eps: float, number: Number) -> None:
    """Set the kernel to exp(-gap / eps), without its negligible entries; spelt out, so that it is fast."""
    gap_NM, kernel_NM, powers_M, bits_M = problem.gap_NM, problem.kernel_NM, problem.powers_M, problem.bits_M
    real, integer = gap_NM.dtype.type, bits_M.dtype.type
    # Bounded, for 0 times infinity is not 0.
    rate, least = real(max(-1.0 / eps, -1e37)), real(number.drop_below)
    log2_e, ln2_high, ln2_low = real(1.4426950408889634), real(0.693145751953125), real(1.4286068203094172e-6)
    half, one, zero = real(0.5), real(1.0), real(0.0)
    c2, c3, c4, c5 = real(1 / 2), real(1 / 6), real(1 / 24), real(1 / 120)
    c6, c7, c8, c9 = real(1 / 720), real(1 / 5040), real(1 / 40320), real(1 / 362880)
    c10, c11, c12 = real(1 / 3628800), real(1 / 39916800), real(1 / 479001600)
    for i in range(gap_NM.shape[0]):
        for j in range(gap_NM.shape[1]):
            x = max(gap_NM[i, j] * rate, least)
            n = np.floor(x * log2_e + half)
            r = (x - n * ln2_high) - n * ln2_low
            high = c6 + r * (c7 + r * (c8 + r * (c9 + r * (c10 + r * (c11 + r * c12)))))
            power = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * high)))))
            kernel_NM[i, j] = power if x > least else zero
            bits_M[j] = (integer(n) + number.bias) << number.shift
        for j in range(gap_NM.shape[1]):
            kernel_NM[i, j] *= powers_M[j]


@_compiled
def _scaled(weight: float, total: float, invert: bool) -> float:
    return weight / total if invert else weight * total


@_compiled
def _sweep(problem: Problem, column_M: Array, weight_N: Array, sums_M: Array, invert: bool) -> float:
    """Read the kernel once: new rows are weight / (kernel column), or weight * (kernel column), in ``new_N``.

    ``sums_M`` becomes new * kernel; returns the squared distance of row * (kernel column) from the weight.
    """
    kernel_NM, row_N, new_N = problem.kernel_NM, problem.row_N, problem.new_N
    rows, columns = kernel_NM.shape
    zero = kernel_NM.dtype.type(0)
    error = 0.0
    sums_M[:] = zero
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        s0 = s1 = s2 = s3 = zero
        for j in range(columns):
            s0 += kernel_NM[i, j] * column_M[j]
            s1 += kernel_NM[i + 1, j] * column_M[j]
            s2 += kernel_NM[i + 2, j] * column_M[j]
            s3 += kernel_NM[i + 3, j] * column_M[j]
        for k, s in enumerate((s0, s1, s2, s3)):
            error += (row_N[i + k] * s - weight_N[i + k]) ** 2
            new_N[i + k] = _scaled(weight_N[i + k], s, invert)
        r0, r1, r2, r3 = new_N[i], new_N[i + 1], new_N[i + 2], new_N[i + 3]
        for j in range(columns):
            first = r0 * kernel_NM[i, j] + r1 * kernel_NM[i + 1, j]
            sums_M[j] += first + (r2 * kernel_NM[i + 2, j] + r3 * kernel_NM[i + 3, j])
    for i in range(whole, rows):
        s = zero
        for j in range(columns):
            s += kernel_NM[i, j] * column_M[j]
        error += (row_N[i] * s - weight_N[i]) ** 2
        new_N[i] = _scaled(weight_N[i], s, invert)
        for j in range(columns):
            sums_M[j] += new_N[i] * kernel_NM[i, j]
    return float(error)


@_compiled
def _centre(costs_NM: Array, gap_NM: Array, least_M: Array) -> float:
    """Set the gap to the costs less the least of each row, then of each column; return its mean.

    Its kernel is at most 1, and 1 somewhere in each row and column: no sum can underflow, however small eps.
    """
    rows, columns = costs_NM.shape
    for j in range(columns):
        least_M[j] = np.inf
    for i in range(rows):
        least = costs_NM[i, 0]
        for j in range(columns):
            least = min(least, costs_NM[i, j])
        for j in range(columns):
            gap_NM[i, j] = costs_NM[i, j] - least
            least_M[j] = min(least_M[j], gap_NM[i, j])
    total = 0.0
    for i in range(rows):
        part = costs_NM.dtype.type(0)
        for j in range(columns):
            gap_NM[i, j] -= least_M[j]
            part += gap_NM[i, j]
        total += float(part)
    mean: float = total / (rows * columns)
    return mean


@_compiled
def _absorb(problem: Problem, a_N: Array, b_M: Array, eps: float) -> None:
    """Move the scalings into the gap, which leaves the plan as it is."""
    gap_NM, step_M = problem.gap_NM, problem.step_M
    rate = gap_NM.dtype.type(eps)
    for j in range(len(b_M)):
        step_M[j] = rate * np.log(problem.column_M[j] / b_M[j])
    for i in range(len(a_N)):
        shift = rate * np.log(problem.row_N[i] / a_N[i])
        for j in range(len(b_M)):
            gap_NM[i, j] -= shift + step_M[j]
    _copy(a_N, problem.row_N)
    _copy(b_M, problem.column_M)


@_compiled
def _copy(source_N: Array, target_N: Array) -> None:
    """Copy; an assignment to a slice takes seconds to compile, for its error message."""
    for i in range(len(source_N)):
        target_N[i] = source_N[i]


@_compiled
def _reach(scaling_N: Array, mass_N: Array) -> float:
    """Return the largest factor by which a scaling is above or below its mass."""
    reach = 1.0
    for i in range(len(mass_N)):
        ratio = scaling_N[i] / mass_N[i]
        reach = max(reach, ratio, 1.0 / ratio)
    return reach


@_compiled
def _length(vector_N: Array) -> float:
    square = 0.0
    for i in range(len(vector_N)):
        square += vector_N[i] ** 2
    return math.sqrt(square)


@_compiled
def _bend(problem: Problem) -> float:
    """Apply the second derivative of the dual to the direction; return their product."""
    direction_M, image_M, scaled_M = problem.direction_M, problem.image_M, problem.scaled_M
    for j in range(len(direction_M)):
        scaled_M[j] = problem.column_M[j] * direction_M[j]
    _sweep(problem, scaled_M, problem.weight_N, image_M, False)
    bend = 0.0
    for j in range(len(direction_M)):
        image_M[j] = problem.sums_M[j] * direction_M[j] - problem.column_M[j] * image_M[j]
        bend += direction_M[j] * image_M[j]
    return bend


@_compiled
def _newton(problem: Problem, a_N: Array, b_M: Array, most: int, precision: float) -> int:
    """Set the step of the column scalings' logarithms where the rows are exact; return the iterations.

    The step y solves (diag(c) - P' diag(1/a) P) y = b - c with c the column sums of the plan P, by conjugate
    gradients preconditioned with c.
    """
    sums_M, step_M, rest_M, direction_M = problem.sums_M, problem.step_M, problem.rest_M, problem.direction_M
    for i in range(len(a_N)):
        problem.weight_N[i] = problem.row_N[i] * (problem.row_N[i] / a_N[i])
    size = 0.0
    for j in range(len(b_M)):
        sums_M[j] *= problem.column_M[j]
        step_M[j] = 0
        rest_M[j] = b_M[j] - sums_M[j]
        direction_M[j] = rest_M[j] / sums_M[j]
        size += rest_M[j] * direction_M[j]
    enough, used = size * precision**2, 0
    while used < most and size > enough:
        bend = _bend(problem)
        used += 1
        if not bend > 0:
            break
        length, before, size = step_M.dtype.type(size / bend), size, 0.0
        for j in range(len(b_M)):
            step_M[j] += length * direction_M[j]
            rest_M[j] -= length * problem.image_M[j]
            size += rest_M[j] ** 2 / sums_M[j]
        turn = step_M.dtype.type(size / before)
        for j in range(len(b_M)):
            direction_M[j] = rest_M[j] / sums_M[j] + turn * direction_M[j]
    return used


@_compiled
def _move(column_M: Array, step_M: Array, longest: float) -> None:
    """Make a step that is ``longest`` at most."""
    largest = longest
    for j in range(len(step_M)):
        largest = max(largest, abs(step_M[j]))
    for j in range(len(step_M)):
        column_M[j] *= np.exp(step_M[j] * (longest / largest))


@_compiled
def _solve(
    costs_NM: Array,
    eps: float,
    a_N: Array,
    b_M: Array,
    tolerance: float,
    iterations: int,
    problem: Problem,
    number: Number,
) -> tuple[int, float]:
    """Leave the solution in the problem; return the iterations and the error of the rows."""
    row_N, column_M, sums_M = problem.row_N, problem.column_M, problem.sums_M
    stages = math.ceil(
        math.log(max(1.0, _centre(costs_NM, problem.gap_NM, problem.step_M) / eps)) / math.log(SHARPEN)
    )
    stages = min(stages, (iterations - 1) // STAGE)
    _copy(a_N, row_N)
    _copy(b_M, column_M)
    soon = STAGE_ERROR * _length(a_N)
    used, since, last, before, longest = 0, 0, np.inf, np.inf, LONGEST
    # Whether the columns are exact, which they are not at the start and after a Newton step.
    exact, rebuild = False, True
    while True:
        if rebuild:
            _exponentiate(problem, eps * SHARPEN**stages, number)
        error = math.sqrt(_sweep(problem, column_M, a_N, sums_M, True))
        if exact and (used >= iterations or (stages == 0 and error <= tolerance)):
            return used, error
        _copy(problem.new_N, row_N)
        used, since = used + 1, since + 1
        slow = exact and stages == 0 and since >= PATIENCE and error > SLOW * last
        if slow and used + 1 < iterations:
            longest = max(longest / 4, 0.5) if error > before else min(2 * longest, LONGEST)
            precision = min(LOOSEST, max(TIGHTEST, tolerance / error))
            used += _newton(problem, a_N, b_M, min(GRADIENTS, iterations - used - 1), precision)
            _move(column_M, problem.step_M, longest)
            exact, since, before = False, 0, error
        else:
            for j in range(len(b_M)):
                column_M[j] = b_M[j] / sums_M[j]
            exact, last = True, error
        sharpen = stages > 0 and (since >= STAGE or error < soon)
        rebuild = sharpen or max(_reach(row_N, a_N), _reach(column_M, b_M)) > number.absorb_beyond
        if rebuild:
            _absorb(problem, a_N, b_M, eps * SHARPEN**stages)
        if sharpen:
            stages, since, last = stages - 1, 0, np.inf


@_compiled
def _solve_self(
    costs_NN: Array,
    eps: float,
    a_N: Array,
    tolerance: float,
    iterations: int,
    problem: Problem,
    number: Number,
) -> tuple[int, float]:
    """Leave the transport of a cloud to itself in the problem; return the iterations and the error.

    The two scalings are one, updated by the geometric mean of the old and the new (Feydy et al., 2019,
    section 3.1): each iteration about halves the error or better, for any eps.
    """
    row_N, product_N = problem.row_N, problem.new_N
    for i in range(len(a_N)):
        _copy(costs_NN[i], problem.gap_NM[i])
    _exponentiate(problem, eps, number)
    _copy(a_N, row_N)
    used = 0
    while True:
        _product(problem.kernel_NM, row_N, product_N)
        mass, error = 0.0, 0.0
        for i in range(len(a_N)):
            mass += row_N[i] * product_N[i]
        for i in range(len(a_N)):
            error += (row_N[i] * product_N[i] / mass - a_N[i]) ** 2
        error = math.sqrt(error)
        if used >= iterations or error <= tolerance:
            break
        used += 1
        for i in range(len(a_N)):
            row_N[i] = math.sqrt(row_N[i] * (a_N[i] / product_N[i]))
    # Averaged updates keep neither marginal exactly, hence neither the mass.
    for i in range(len(a_N)):
        row_N[i] /= math.sqrt(mass)
    _copy(row_N, problem.column_M)
    return used, error


@_compiled
def _product(kernel_NM: Array, column_M: Array, product_N: Array) -> None:
    for i in range(kernel_NM.shape[0]):
        total = kernel_NM.dtype.type(0)
        for j in range(kernel_NM.shape[1]):
            total += kernel_NM[i, j] * column_M[j]
        product_N[i] = total


@_compiled
def _finish(
    costs_NM: Array, eps: float, a_N: Array, b_M: Array, problem: Problem, plan_NM: Array
) -> tuple[float, float, float]:
    """Set the plan; return the dual value, <P, C> and sum P log(P / ab).

    A potential is what was moved into the gap and eps times the logarithm of a scaling without its mass.
    """
    column_M, logs_M = problem.column_M, problem.step_M
    potential = 0.0
    for j in range(len(b_M)):
        logs_M[j] = np.log(column_M[j] / b_M[j])
        potential += b_M[j] * logs_M[j]
    zero = plan_NM.dtype.type(0)
    moved, cost, gap, logs, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(a_N)):
        row, row_moved, row_cost, row_gap, row_logs, mass = problem.row_N[i], zero, zero, zero, zero, zero
        for j in range(len(b_M)):
            share = row * problem.kernel_NM[i, j] * column_M[j]
            plan_NM[i, j] = share
            mass += share
            row_moved += b_M[j] * (costs_NM[i, j] - problem.gap_NM[i, j])
            row_cost += share * costs_NM[i, j]
            row_gap += share * problem.gap_NM[i, j]
            row_logs += share * logs_M[j]
        log = np.log(row / a_N[i])
        potential += a_N[i] * log
        moved += a_N[i] * row_moved
        cost += row_cost
        gap += row_gap
        logs += row_logs + mass * log
        total += mass
    return moved + eps * (potential - (total - 1.0)), cost, logs - gap / eps


@_compiled
def solve_all(
    costs_PNM: Array,
    eps_P: Array,
    a_PN: Array,
    b_PM: Array,
    tolerance: float,
    iterations: int,
    symmetric: bool,
    problem: Problem,
    number: Number,
    plan_PNM: Array,
    facts_P5: Array,
) -> None:
    """Set the plans and, per problem, the dual value, <P, C>, KL, the error and the iterations."""
    for p in range(len(costs_PNM)):
        costs_NM, eps, a_N, b_M = costs_PNM[p], float(eps_P[p]), a_PN[p], b_PM[p]
        if symmetric:
            used, error = _solve_self(costs_NM, eps, a_N, tolerance, iterations, problem, number)
        else:
            used, error = _solve(costs_NM, eps, a_N, b_M, tolerance, iterations, problem, number)
        facts = _finish(costs_NM, eps, a_N, b_M, problem, plan_PNM[p])
        facts_P5[p, 0], facts_P5[p, 1], facts_P5[p, 2] = facts
        facts_P5[p, 3], facts_P5[p, 4] = error, used
