"""The way into the compiled solver, which is loaded when it is first needed.

Axes: P problems, N rows, M columns.
"""

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmdistill.transport.problem import NUMBERS, Array, Problem

if TYPE_CHECKING:
    from types import ModuleType

# What fills the cache: one small problem in single precision, which is what training uses.
_COMPILE = """
import numpy as np
from mmdistill.transport.compiled import Options, solve_all
half_PN = np.full((1, 2), 0.5, np.float32)
costs_PNM, eps_P = np.ones((1, 2, 2), np.float32), np.ones(1, np.float32)
solve_all(costs_PNM, eps_P, half_PN, half_PN, Options(0.1, 2, False))
"""
_COMPILING = "MMDISTILL_COMPILING"


class Options(NamedTuple):
    """How problems are solved; ``gaps``: whether there may be points without mass, which are not there."""

    tolerance: float
    iterations: int
    symmetric: bool
    gaps: bool = False


def solve_all(
    costs_PNM: Array, eps_P: Array, a_PN: Array, b_PM: Array, options: Options
) -> tuple[Array, Array]:
    """Return plan_PNM and facts_P5 in double precision: dual value, <P, C>, KL, error, iterations.

    KL is that of P from a x b. Everything is of one type, float32 or float64, contiguous and finite; eps and,
    but for gaps, masses are above 0.
    """
    if not options.gaps:
        return _solve(costs_PNM, eps_P, a_PN, b_PM, options)
    plan_PNM, facts_P5 = np.zeros_like(costs_PNM), np.empty((len(costs_PNM), 5))
    for p, (a_N, b_M) in enumerate(zip(a_PN, b_PM, strict=True)):
        row, column = np.flatnonzero(a_N), np.flatnonzero(b_M)
        part = np.ix_(row, column)
        masses = a_N[None, row], b_M[None, column]
        plan_1NM, facts_P5[p] = _solve(costs_PNM[p][part][None], eps_P[p : p + 1], *masses, options)
        plan_PNM[p][part] = plan_1NM[0]
    return plan_PNM, facts_P5


def _solve(costs_PNM: Array, eps_P: Array, a_PN: Array, b_PM: Array, options: Options) -> tuple[Array, Array]:
    kernel = _kernel()
    real = costs_PNM.dtype
    _, rows, columns = costs_PNM.shape
    plan_PNM, facts_P5 = np.empty_like(costs_PNM), np.empty((len(costs_PNM), 5))
    powers_M = np.empty(columns, real)
    bits_M = powers_M.view(np.int32 if real.itemsize == 4 else np.int64)
    spaces = [*np.empty((2, rows, columns), real), powers_M, bits_M]
    problem = Problem(*spaces, *np.empty((3, rows), real), *np.empty((7, columns), real))
    problems = (costs_PNM, eps_P, a_PN, b_PM)
    kernel.solve_all(*problems, *options[:3], problem, NUMBERS[real.itemsize], plan_PNM, facts_P5)
    return plan_PNM, facts_P5


@functools.cache
def _kernel() -> "ModuleType":
    """Return the compiled solver as every process loads it.

    What a process compiles for itself rounds differently from what it keeps for the next, because other calls
    are inlined. So where there is nothing to load yet, one other process fills the cache first.
    """
    # Not before it is needed: numba takes a third of a second to import.
    from mmdistill.transport import kernel

    folder = kernel.solve_all.stats.cache_path  # type: ignore[attr-defined]
    if folder is not None and _COMPILING not in os.environ and not _is_kept(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / "compiling.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_kept(Path(folder)):
                # What an older version kept may name what is no longer there, and would not even load.
                for outdated in Path(folder).glob("kernel.*.nbi"):
                    outdated.unlink()
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), _COMPILING: "1"}
                # If it fails, this process compiles for itself and says what is wrong.
                subprocess.run([sys.executable, "-c", _COMPILE], env=environment, check=False)
    return kernel


def _is_kept(folder: Path) -> bool:
    written = Path(__file__).with_name("kernel.py").stat().st_mtime
    return any(index.stat().st_mtime >= written for index in folder.glob("kernel.solve_all-*.nbi"))
