"""How the resources of a cluster are shared out among orders: arithmetic only."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmdistill.errors import StudyError
from mmdistill.studies.file import Resources

# Of the CPUs of one worker: what the process that drives its group takes.
DRIVER_SHARE = 0.1
# Sums of fractions must not lose an order to rounding.
SLACK = 1e-6


class Shares(NamedTuple):
    """What is reserved.

    Attributes:
        order: for the Tune trial of an order; by Tune's names, ``cpu`` and ``gpu``.
        worker: for each worker of its group; by Ray's names, ``CPU`` and ``GPU``; empty without a group.
        gpus: GPUs per worker, or of the order; 0 on CPUs.
        concurrent: orders at once.
    """

    order: dict[str, float]
    worker: dict[str, float]
    gpus: float
    concurrent: int


def shares(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Shares:
    """Return what one order reserves and how many run at once.

    Args:
        resources: what the study asks for.
        nodes: the resources of each node, by Ray's names.

    Raises:
        StudyError: if the cluster has no room for a single order.
    """
    has_gpu = any(node.get("GPU", 0) > 0 for node in nodes)
    gpus = resources.gpus if resources.device != "cpu" and has_gpu else 0.0
    if resources.device == "cuda" and not gpus:
        raise StudyError('resources.device is "cuda", but the cluster has no GPU; use "auto" or "cpu"')
    workers, cpus = resources.workers, resources.cpus
    gpu = {"gpu": gpus} if gpus else {}
    if workers == 0:
        order, worker = {"cpu": cpus, **gpu}, {}
        fits = sum(_slots(node, cpus, gpus) for node in nodes)
    else:
        driver = DRIVER_SHARE * cpus
        order = {"cpu": driver}
        worker = {"CPU": cpus - driver} | ({"GPU": gpus} if gpus else {})
        fits = _groups(nodes, workers, driver, cpus - driver, gpus)
    if fits < 1:
        raise StudyError(_too_small(resources, gpus, nodes))
    return Shares(order, worker, gpus, min(resources.concurrent or fits, fits))


def _slots(node: Mapping[str, float], cpus: float, gpus: float, taken: float = 0.0) -> int:
    """Return how many times some CPUs and GPUs fit on a node of which some CPUs are taken."""
    slots = max(0, math.floor((node.get("CPU", 0) - taken) / cpus + SLACK))
    if not gpus:
        return slots
    there = node.get("GPU", 0)
    # A fraction is of one device: what is left of it is of no use to the next.
    room = there / gpus + SLACK if gpus >= 1 else math.floor(there) * math.floor(1 / gpus + SLACK)
    return min(slots, math.floor(room))


def _groups(
    nodes: Sequence[Mapping[str, float]], workers: int, driver: float, cpus: float, gpus: float
) -> int:
    """Return how many groups run at once, wherever their drivers happen to sit.

    A group that has to wait for room is given up by Ray Train after a while, so there must be none.
    """
    groups = 0
    while sum(_slots(node, cpus, gpus, (groups + 1) * driver) for node in nodes) >= (groups + 1) * workers:
        groups += 1
    return groups


def _too_small(resources: Resources, gpus: float, nodes: Sequence[Mapping[str, float]]) -> str:
    workers = max(resources.workers, 1)
    asked = f"{workers} x ({resources.cpus:g} CPUs, {gpus:g} GPUs)"
    has = ", ".join(f"({node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs)" for node in nodes)
    mend = "lower resources.workers, cpus or gpus"
    return f"one order needs {asked}, but the nodes of the cluster have {has or 'nothing'}; {mend}"
