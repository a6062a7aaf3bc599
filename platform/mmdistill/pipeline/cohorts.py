"""The best size of a cohort for a run, by training a few steps of it.

Axes: M teachers, N rows, D width, C outputs.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from mmdistill.models.cost import parameters_per_lane
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.fold import Fold, opened
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.studying import student_objective, student_plan
from mmdistill.training.cohort import choose_lanes
from mmdistill.training.loop import Training
from mmdistill.training.objectives import CHUNK
from mmdistill.training.runtime import LocalRuntime

FLOAT_BYTES = 4
# Copies of a lane's parameters: value, gradient (twice while it is made), two moments, the best epoch's.
COPIES = 6
# Values of the width of the network that are alive per row and modality, forwards and backwards.
ACTIVATIONS = 12
# Matrices of batch x batch that a term holds at once.
SQUARES = 16
# Of the memory that is free; the data, and whatever else starts meanwhile, live in the rest.
USABLE = 0.5


def best_lanes(run: RunSettings, concurrent: int) -> int:
    """Return how many runs like this one should train together on this machine's CPUs.

    Takes a few CPU seconds; the teachers' outputs are drawn at random, for only their shapes matter.

    Args:
        run: the run.
        concurrent: orders that share the memory.
    """
    torch.set_num_threads(1)  # as an order does
    run = canonical(run)
    fold = opened(run.data, run.fold, with_test=False, device="cpu")
    most = int(USABLE * available_bytes() / max(concurrent, 1) / lane_bytes(run, fold))
    return choose_lanes(lambda lanes: _step(run, fold, lanes), most)


def lane_bytes(run: RunSettings, fold: Fold) -> int:
    """Return an estimate, rather too high, of the memory that one lane of a student's training takes."""
    objective = student_objective([run], made_up_outputs(run, 1, fold), fold, LocalRuntime())
    network, teachers = run.network, len(run.frozen_networks())
    inputs = sum(fold.widths(run.data.student + run.data.privileged).values())
    rows = max(run.batch_size, min(CHUNK, len(fold.validation)))
    streams = len(run.data.student) + (len(run.data.modalities) if run.trains_teacher() else 0)
    streams += 2 * len(objective.student.hallucinators)
    values = COPIES * parameters_per_lane(objective.modules)
    values += 2 * teachers * len(fold.train) * (network.width + 2 * fold.outputs)
    values += 2 * teachers * len(fold.train) * _further_values(run, fold)
    values += rows * (inputs + ACTIVATIONS * network.width * network.depth * (streams + 1))
    values += SQUARES * run.batch_size**2
    return FLOAT_BYTES * values


def _further_values(run: RunSettings, fold: Fold) -> int:
    return sum(math.prod(shape) for shape in _further_shapes(run, fold).values())


def _further_shapes(run: RunSettings, fold: Fold) -> dict[str, tuple[int, ...]]:
    """Return the shapes, per teacher and row, of what a run's terms look at beside features and logits."""
    shapes: dict[str, tuple[int, ...]] = {}
    if "layers" in run.further():
        most = run.network.width * max(map(len, run.networks().values()))
        shapes |= {f"layer_{n}": (most,) for n in range(run.network.depth - 1)}
    if "masked" in run.further():
        shapes |= {name: (len(run.data.student), fold.outputs) for name in ("alone", "without")}
    return shapes


def available_bytes() -> int:
    """Return the memory that can be had without swapping; half of all where the system does not say."""
    table = Path("/proc/meminfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _step(run: RunSettings, fold: Fold, lanes: int) -> Callable[[], object]:
    runs = [run.model_copy(update={"seed": run.seed + k}) for k in range(lanes)]
    objective = student_objective(runs, made_up_outputs(run, lanes, fold), fold, LocalRuntime())
    training = Training(objective, student_plan(runs, fold), LocalRuntime())
    return lambda: training.take_steps(1)


def made_up_outputs(run: RunSettings, lanes: int, fold: Fold) -> list[Entry] | None:
    """Return outputs of teachers that know nothing, per lane; None where no network is trained before."""
    names = list(run.frozen_networks())
    if not names:
        return None
    generator = torch.Generator().manual_seed(0)
    shapes = _further_shapes(run, fold) | {"features": (run.network.width,)}
    shapes |= dict.fromkeys(("logits", "held_out"), (fold.outputs,))
    rows = (len(names), len(fold.train))
    tensors = {name: torch.randn(*rows, *shape, generator=generator) for name, shape in shapes.items()}
    missing = run.missing()
    if run.hallucinates() and missing is not None:
        shape = (len(missing.modalities), len(fold.train), run.network.width)
        tensors["streams"] = torch.randn(*shape, generator=generator)
    return [Entry(tensors, {"teachers": names})] * lanes
