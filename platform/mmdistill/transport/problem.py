"""What the compiled solver works on: space for one problem, and what depends on the number format.

Axes: N rows, M columns.
"""

import math
from typing import Any, NamedTuple

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
