"""The way into the compiled solver: what it needs to know of a number format, and space to work in.

Axes: P problems, N rows, M columns.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Number(NamedTuple):
    """What depends on the number format.

    Attributes:
        drop_below: logarithm of a kernel entry below which it is 0, before products become subnormal.
        absorb_beyond: a scaling (without its mass) beyond which it moves into the kernel, before a dropped
            entry could carry mass.
        bias, shift: 2^n has the bits (n + bias) << shift.
    """

    drop_below: float
    absorb_beyond: float
    bias: int
    shift: int


NUMBERS = {4: Number(-60.0, math.exp(20.0), 127, 23), 8: Number(-600.0, math.exp(200.0), 1023, 52)}


class Problem(NamedTuple):
    """Space for one problem, used again for the next."""

    gap_NM: Array
    kernel_NM: Array
    # Powers of 2 and their bits: the same memory.
    powers_M: Array
    bits_M: Array
    row_N: Array
    new_N: Array
    # From here on: of the Newton step, but for `sums_M`.
    weight_N: Array
    column_M: Array
    sums_M: Array
    step_M: Array
    rest_M: Array
    direction_M: Array
    scaled_M: Array
    image_M: Array


def solve_all(
    costs_PNM: Array,
    eps_P: Array,
    a_PN: Array,
    b_PM: Array,
    *,
    tolerance: float,
    iterations: int,
    symmetric: bool,
) -> tuple[Array, Array]:
    """Return plan_PNM and facts_P4 in double precision: <P, C>, KL(P || a x b), error, iterations.

    Everything is of one type, float32 or float64, contiguous and finite; eps and masses are above 0.
    """
    # Not before it is needed: numba takes a third of a second to import.
    from mmdistill.transport import kernel

    real = costs_PNM.dtype
    _, rows, columns = costs_PNM.shape
    plan_PNM, facts_P4 = np.empty_like(costs_PNM), np.empty((len(costs_PNM), 4))
    powers_M = np.empty(columns, real)
    bits_M = powers_M.view(np.int32 if real.itemsize == 4 else np.int64)
    spaces = [*np.empty((2, rows, columns), real), powers_M, bits_M]
    problem = Problem(*spaces, *np.empty((3, rows), real), *np.empty((7, columns), real))
    number = NUMBERS[real.itemsize]
    kernel.solve_all(
        costs_PNM, eps_P, a_PN, b_PM, tolerance, iterations, symmetric, problem, number, plan_PNM, facts_P4
    )
    return plan_PNM, facts_P4
