"""Compute a recorded run again, from its recorded settings, and compare; nothing of the study is changed."""

import math
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmdistill.errors import InputError, Problem, StudyError
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.order import Lane, Order
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import VERSIONS, Pipeline, Stage
from mmdistill.records.code import this_code
from mmdistill.records.finals import Final
from mmdistill.records.rows import AttemptRow, StudyRow, TrialRow
from mmdistill.records.sealed import unseal
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import VARYING_METRICS, latest
from mmdistill.training.runtime import LocalRuntime

# Elsewhere the last bits differ, and over some hundred steps they grow.
ELSEWHERE = 0.05
Values = dict[str, Any]
Say = Callable[[str], None]


class Difference(NamedTuple):
    """A value that is not the recorded one."""

    what: str
    recorded: Any
    recomputed: Any


class Rerun(NamedTuple):
    """What came of computing a run again.

    Attributes:
        order_id: the order it belongs to; all runs of the order were trained, as they were then.
        beside: how many other runs trained in the same order.
        elsewhere: what of machine, device and code is not as recorded; empty where it must be bit for bit.
        tolerance: the largest difference that counts as none, of values above 1 relative to them.
        compared: numbers and words that were compared.
        largest: the largest difference of two numbers, and of which; None where all are equal.
        differences: those beyond the tolerance.
        opening: number of the opening that had read these test rows; None of another phase.
    """

    trial_id: str
    arm: str
    phase: str
    order_id: str
    beside: int
    elsewhere: tuple[str, ...]
    tolerance: float
    compared: int
    largest: tuple[str, float] | None
    differences: tuple[Difference, ...]
    opening: int | None

    @property
    def is_same(self) -> bool:
        """Return whether nothing differs beyond the tolerance."""
        return not self.differences


def rerun(
    folder: StudyFolder,
    trial_ids: Sequence[str],
    cache: Path,
    *,
    fresh: bool = False,
    tolerance: float | None = None,
    say: Say = lambda _: None,
) -> list[Rerun]:
    """Compute runs again and compare them with their records.

    A student is always trained again, in the company it was trained in, for the last bits depend on that. A
    test reading is repeated on rows that an opening on record had read: no new opening is spent.

    Args:
        folder: of the study; only read.
        trial_ids: keys of the runs.
        cache: folder of the stage cache; what is taken from it is copied first.
        fresh: train teachers and whatever else stands before the student again too.
        tolerance: the largest difference that counts as none; by default 0 on the machine, device and
            versions of the record, else ``ELSEWHERE``.
        say: hears what is done.

    Raises:
        InputError: a run that is not on record, or data that has changed since.
        StudyError: a damaged record, or a test reading without an opening.
    """
    orders = _orders(folder, trial_ids)
    found = {}
    for order_id, wanted in orders.items():
        recorded = folder.final(order_id, whole=True)
        order = rebuilt(folder, recorded)
        _require_opening(folder, order)
        say(f"{order_id}: training {len(order.lanes)} run(s) again that trained in one order")
        again, device = _computed(folder, order, recorded, cache, fresh=fresh, say=say)
        for trial_id in wanted:
            found[trial_id] = _compared(folder, trial_id, recorded, again, device, tolerance)
    return [found[trial_id] for trial_id in dict.fromkeys(trial_ids)]


def _orders(folder: StudyFolder, trial_ids: Sequence[str]) -> dict[str, list[str]]:
    trials = latest(folder)["trials"].select(["trial_id", "order_id"]).to_pylist()
    order_of = {trial["trial_id"]: trial["order_id"] for trial in trials}
    wrong = [
        Problem("TRIAL", f"no run is called {name!r}", "`mmdistill why` lists the runs of an arm")
        for name in trial_ids
        if name not in order_of
    ]
    if wrong:
        raise InputError(wrong)
    orders: dict[str, list[str]] = {}
    for name in dict.fromkeys(trial_ids):
        orders.setdefault(order_of[name], []).append(name)
    return orders


def rebuilt(folder: StudyFolder, final: Final) -> Order:
    """Return the order that left a result, from what is on record of its runs."""
    race = folder.resolved["search"]["racing"] if final.kind == "search" else None
    lanes = [_lane(trial) for trial in final.trials]
    return Order.model_validate(
        {
            "order_id": final.order_id,
            "kind": final.kind,
            "title": f"again {final.order_id}",
            "lanes": lanes,
            "race": race,
        }
    )


def _lane(trial: TrialRow) -> Lane:
    return Lane.model_validate(
        {
            "trial_id": trial.trial_id,
            "arm": trial.arm,
            "phase": trial.phase,
            "number": trial.number,
            "seed_index": trial.seed_index,
            "pair_id": trial.pair_id,
            "run": RunSettings.model_validate_json(trial.config_json),
            "parameters": trial.parameters,
        }
    )


def _require_opening(folder: StudyFolder, order: Order) -> None:
    if order.kind == "test" and not folder.has_opening(order.order_id):
        raise StudyError(f"{folder.root}: no opening on record read the test rows of {order.order_id}")


def _computed(
    folder: StudyFolder, order: Order, recorded: Final, cache: Path, *, fresh: bool, say: Say
) -> tuple[Final, torch.device]:
    torch.set_num_threads(1)
    device = torch.device(recorded.trials[0].device)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    pipelines = list(_pipelines(folder, order, device))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if not fresh:
            copied = _borrow(pipelines, cache, root)
            say(f"{copied} stages before the student are from the cache; what is missing is trained again")
        return execute(order, StageCache(root), LocalRuntime(device)), device


def _pipelines(folder: StudyFolder, order: Order, device: torch.device) -> Iterator[Pipeline]:
    known = {one for prints in folder.resolved["fingerprints"].values() for one in prints.values()}
    for lane in order.lanes:
        data = lane.run.data
        fold = opened(data, lane.run.fold, with_test=order.kind == "test", device=str(device))
        if fold.arrays.fingerprint not in known:
            rule = "the data is not what the study was computed on: its fingerprint differs"
            raise InputError([Problem(data.dataset, rule, "restore the data of the study")])
        yield Pipeline(lane.run, fold.arrays.fingerprint)


def _borrow(pipelines: Sequence[Pipeline], cache: Path, root: Path) -> int:
    """Copy what stands before the students, as far as the cache has it; return how many stages those are."""
    keys = {stage.key for pipeline in pipelines for stage in _before_student(pipeline)}
    marks = [mark for key in sorted(keys) if (mark := cache / f"{key}.json").exists()]
    copied = 0
    for mark in marks:
        try:
            tensors = cache / unseal(mark, mark.read_bytes())["tensors"]
            shutil.copy2(tensors, root / tensors.name)
            shutil.copy2(mark, root / mark.name)
            copied += 1
        except (StudyError, OSError, KeyError):
            continue  # A damaged entry is none: the stage is trained again.
    return copied


def _before_student(pipeline: Pipeline) -> list[Stage]:
    some = [pipeline.outputs, pipeline.alignment, pipeline.first_network, *pipeline.teachers]
    return [stage for stage in some if stage is not None]


def _compared(
    folder: StudyFolder,
    trial_id: str,
    recorded: Final,
    again: Final,
    device: torch.device,
    tolerance: float | None,
) -> Rerun:
    old, new = (next(t for t in final.trials if t.trial_id == trial_id) for final in (recorded, again))
    elsewhere = tuple(_elsewhere(folder, old, device))
    if tolerance is None:
        tolerance = ELSEWHERE if elsewhere else 0.0
    before, after = (_values(final, t, exact=tolerance == 0) for final, t in ((recorded, old), (again, new)))
    names = sorted(before.keys() | after.keys())
    pairs = [Difference(name, before.get(name), after.get(name)) for name in names]
    sizes = {pair.what: size for pair in pairs if (size := _size(pair)) > 0}
    openings = {row.trial_id: row.opening for row in folder.openings()}
    return Rerun(
        trial_id=trial_id,
        arm=old.arm,
        phase=old.phase,
        order_id=old.order_id,
        beside=len(recorded.trials) - 1,
        elsewhere=elsewhere,
        tolerance=tolerance,
        compared=len(names),
        largest=max(sizes.items(), key=lambda item: item[1], default=None),
        differences=tuple(pair for pair in pairs if sizes.get(pair.what, 0.0) > tolerance),
        opening=openings.get(trial_id),
    )


def _elsewhere(folder: StudyFolder, trial: TrialRow, device: torch.device) -> Iterator[str]:
    """Yield what is not as recorded and decides the last bits, or more."""
    made, mine = _made_with(folder, trial.order_id), this_code()
    then_and_now = {
        "host": (trial.host, socket.gethostname()),
        "device": (trial.device, str(device)),
        "mmdistill": (made.package_version, mine.package_version),
        "python": (made.python, mine.python),
        "torch": (made.torch, mine.torch),
        "stages": (folder.resolved["stage_versions"], VERSIONS),
    }
    for what, (then, now) in then_and_now.items():
        if then != now:
            yield f"{what} was {then}, is {now}"


def _made_with(folder: StudyFolder, order_id: str) -> AttemptRow | StudyRow:
    """Return the record of the code that computed an order; before version 2 only the study's is known."""
    known = [row for row in folder.attempts(order_id) if row.torch is not None]
    return known[-1] if known else folder.row


def _values(final: Final, trial: TrialRow, *, exact: bool) -> Values:
    """Return what is compared: outcome, metrics and predictions; if bit for bit, also epochs and curves."""
    metrics = {
        f"metrics.{name}": value
        for name, value in trial.metrics.items()
        if not any(odd in name for odd in VARYING_METRICS)
    }
    predictions = {
        f"predictions.{row.row}.{c}": output
        for row in final.predictions
        if row.trial_id == trial.trial_id
        for c, output in enumerate(row.outputs)
    }
    values: Values = {"status": trial.status} | metrics | predictions
    if exact:
        values |= {"epoch": trial.epoch, "stopped_epoch": trial.stopped_epoch}
        values |= {f"selection.{name}": share for name, share in trial.selection.items()}
        values |= {
            f"curves.{row.name}.{row.epoch}": row.value
            for row in final.epochs
            if row.trial_id == trial.trial_id
        }
    return values


def _size(pair: Difference) -> float:
    """Return how far two values are apart, relative to large ones; infinite for what are no two numbers."""
    a, b = pair.recorded, pair.recomputed
    if a == b:
        return 0.0
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return math.inf
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return abs(a - b) / max(1.0, abs(a))
