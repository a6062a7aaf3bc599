"""How many runs should train together: measured, not guessed."""

import time
from collections.abc import Callable

SIZES = (1, 4, 16, 64)
# A smaller cohort is taken if its CPU time per lane is within this factor of the best: it holds less memory,
# and more orders can run at once.
NEAR = 1.05
# Least CPU seconds to measure for each size; a single step may take longer.
MEASURED_S = 0.25


def choose_lanes(
    step_of: Callable[[int], Callable[[], object]], most: int, clock: Callable[[], float] = time.process_time
) -> int:
    """Return the smallest size of a cohort whose CPU time per lane and step is near the best.

    Args:
        step_of: returns what trains a cohort of a given size for one step.
        most: lanes that fit into memory.
        clock: seconds of CPU time so far.
    """
    sizes = [size for size in SIZES if size <= most] or [SIZES[0]]
    per_lane = {size: _seconds(step_of(size), clock) / size for size in sizes}
    limit = NEAR * min(per_lane.values())
    return next(size for size in sizes if per_lane[size] <= limit)


def _seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the least time of a step: whatever else this machine does can only add to it."""
    step()  # the first one allocates
    start = clock()
    times: list[float] = []
    while not times or clock() - start < MEASURED_S:
        before = clock()
        step()
        times.append(clock() - before)
    return min(times)
