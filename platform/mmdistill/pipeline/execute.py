"""Execute an order: from settings and data to rows, wherever it runs.

Nothing here knows Ray. An order's result is durable in the study folder before anybody is told of it.
"""

import contextlib
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from mmdistill.errors import LockedError, StudyError
from mmdistill.faults import point
from mmdistill.pipeline.bench import Bench, Piece
from mmdistill.pipeline.cache import Entry, StageCache
from mmdistill.pipeline.costs import sizes_of, student_key
from mmdistill.pipeline.evaluation import Array, evaluate, outputs_in_units, probabilities
from mmdistill.pipeline.fold import Fold, opened, tensor_part
from mmdistill.pipeline.order import Lane, Order
from mmdistill.pipeline.run import canonical
from mmdistill.pipeline.structures import matrices
from mmdistill.pipeline.studying import cohort_key, degenerate_notes, student_network
from mmdistill.records.finals import Final
from mmdistill.records.rows import EpochRow, MatrixRow, PredictionRow, TrialRow
from mmdistill.records.store import is_storage_fault
from mmdistill.records.study import StudyFolder
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import Runtime


def run_order(order: Order, study: StudyFolder, cache: StageCache, runtime: Runtime) -> str:
    """Execute an order and commit its result.

    An exception inside the order is written down as a failed attempt and never raised: it must not cost
    the worker.

    Returns:
        ``complete``, ``failed``, ``there already``, or ``storage``: the disk is full or failing, which says
        nothing about the order.

    Raises:
        LockedError: if another driver has taken the study over from this process.
    """
    torch.set_num_threads(1)
    attempt = _Attempt(order.order_id, study, writes=runtime.rank == 0)
    try:
        return _carry_out(order, study, cache, runtime, attempt)
    except LockedError:
        raise
    except Exception as error:
        if runtime.rank > 0:
            raise  # The others of the group would wait for this worker for ever.
        return attempt.broken(error)


class _Attempt:
    """One try at an order, noted by the first worker alone."""

    def __init__(self, order_id: str, study: StudyFolder, *, writes: bool) -> None:
        self._order_id, self._study, self.writes = order_id, study, writes
        self._number, self._clock = 0, time.process_time()

    def begin(self) -> None:
        if self.writes:
            self._number = self._study.begin_attempt(self._order_id)

    def end(self, outcome: str, error: str | None = None) -> None:
        if self._number:
            spent = time.process_time() - self._clock
            self._study.end_attempt(self._order_id, self._number, outcome, error, spent)

    def broken(self, error: Exception) -> str:
        """Note what went wrong, if the disk lets us, and return the outcome."""
        outcome = "storage" if is_storage_fault(error) else "failed"
        with contextlib.suppress(OSError):
            self.end(outcome, _last_line(error))
        return outcome


def _carry_out(
    order: Order, study: StudyFolder, cache: StageCache, runtime: Runtime, attempt: _Attempt
) -> str:
    if study.has_final(order.order_id):
        return "there already"
    attempt.begin()
    if order.kind == "test" and not study.has_opening(order.order_id):
        raise StudyError("its look at the test rows is not in the ledger of openings")
    point("order.begun")
    final = execute(order, cache, runtime)
    point("order.computed")
    if attempt.writes:
        study.put_final(final)
        point("order.recorded")
        attempt.end("complete")
    return "complete"


def execute(order: Order, cache: StageCache, runtime: Runtime) -> Final:
    """Return the rows of an order."""
    if order.kind == "stages":
        return _prepare(order, cache, runtime)
    groups = _groups(order.lanes)
    results = [result for group in groups for result in _study_lanes(order, group, cache, runtime)]
    return Final(
        order.order_id,
        order.kind,
        trials=[result.trial for result in results],
        stages=[row for result in results for row in result.bench.rows if result.is_first],
        epochs=[row for result in results for row in result.epochs],
        predictions=[row for result in results for row in result.predictions],
        matrices=[row for result in results for row in result.matrices],
    )


def failed_final(order: Order, reason: str) -> Final:
    """Return the rows of an order that was given up: it counts, and the study goes on."""
    now = datetime.now(UTC)
    trials = [_trial(order, lane, {}, {}, None, now) for lane in order.lanes]
    trials = [replace(trial, status="failed", error=reason) for trial in trials]
    return Final(order.order_id, order.kind, trials=trials)


@dataclass(frozen=True)
class _Result:
    trial: TrialRow
    epochs: list[EpochRow]
    predictions: list[PredictionRow]
    bench: Bench
    is_first: bool
    matrices: Sequence[MatrixRow] = ()


def _prepare(order: Order, cache: StageCache, runtime: Runtime) -> Final:
    request = order.stages[0]
    fold = opened(request.run.data, request.run.fold, with_test=False, device=str(runtime.device))
    bench = Bench(order.order_id, cache, fold, runtime)
    pieces = [Piece(r.run, r.pair_id) for r in order.stages]
    if request.kind == "teacher":
        bench.teacher(request.name, pieces)
    else:
        bench.alignment(pieces)
        bench.outputs(pieces)
    return Final(order.order_id, order.kind, stages=bench.rows)


def _groups(lanes: Sequence[Lane]) -> Iterator[list[Lane]]:
    groups: dict[str, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(cohort_key(lane.run), []).append(lane)
    yield from groups.values()


def _study_lanes(order: Order, lanes: list[Lane], cache: StageCache, runtime: Runtime) -> list[_Result]:
    started = datetime.now(UTC)
    run = lanes[0].run
    fold = opened(run.data, run.fold, with_test=order.kind == "test", device=str(runtime.device))
    bench = Bench(order.order_id, cache, fold, runtime)
    pieces = [Piece(lane.run, lane.pair_id, lane.arm) for lane in lanes]
    outputs = bench.outputs(pieces)
    students = bench.students(pieces, outputs, order.race)
    taught = outputs or [Entry({}, {})] * len(lanes)
    if order.kind == "test":
        return _test(order, lanes, students, bench, taught)
    results = []
    looked_at: list[Sequence[MatrixRow]] = [()] * len(lanes)
    if order.kind == "confirm":
        looked_at = list(matrices(lanes, students, outputs, fold, runtime))
    cost_key = student_key(run, sizes_of(fold, run), len(lanes), race=order.race)
    for k, (lane, student) in enumerate(zip(lanes, students, strict=True)):
        trial = _trial(order, lane, student.facts, taught[k].facts, bench, started)
        trial = replace(trial, cost_key=cost_key)
        results.append(_Result(trial, _epochs(lane, student), [], bench, k == 0, looked_at[k]))
    return results


def _trial(
    order: Order,
    lane: Lane,
    facts: Mapping[str, Any],
    taught: Mapping[str, Any],
    bench: Bench | None,
    started: datetime,
) -> TrialRow:
    """Return the row of a lane from the facts of its student and of its teachers' outputs."""
    run = canonical(lane.run)
    shares = facts.get("selection", {})
    notes = [*facts.get("notes", []), *taught.get("notes", [])]
    diverged, stopped = facts.get("diverged"), facts.get("stopped_epoch")
    return TrialRow(
        trial_id=lane.trial_id,
        order_id=order.order_id,
        arm=lane.arm,
        phase=lane.phase,
        number=lane.number,
        seed_index=lane.seed_index,
        seed=lane.run.seed,
        fold=lane.run.fold,
        pair_id=lane.pair_id,
        status="diverged" if diverged else "pruned" if stopped else "complete",
        split="validation",
        epoch=facts.get("epoch"),
        stopped_epoch=stopped,
        metrics={} if diverged else facts.get("metrics", {}),
        parameters=lane.parameters,
        config_json=lane.run.model_dump_json(),
        run_digest=run.digest,
        dataset=lane.run.data.dataset,
        teachers=list(run.networks()),
        selection=shares,
        note="; ".join([*degenerate_notes(run, shares), *notes]) or None,
        cpu_s=facts.get("cpu_s", 0.0),
        stage_cpu_s=taught.get("total_cpu_s", 0.0),
        lanes=facts.get("lanes", len(order.lanes)),
        error=diverged,
        device="cpu" if bench is None else str(bench.runtime.device),
        host=socket.gethostname(),
        started_at=started,
        ended_at=datetime.now(UTC),
    )


def _epochs(lane: Lane, student: Entry) -> list[EpochRow]:
    return [
        EpochRow(
            trial_id=lane.trial_id,
            arm=lane.arm,
            phase=lane.phase,
            epoch=epoch,
            name=name.removeprefix("detail/"),
            value=value,
        )
        for name, values in student.facts["curves"].items()
        for epoch, value in enumerate(values)
    ]


def _test(
    order: Order, lanes: list[Lane], students: Sequence[Entry], bench: Bench, taught: Sequence[Entry]
) -> list[_Result]:
    started, clock = datetime.now(UTC), time.process_time()
    fold = bench.fold
    if fold.arrays.test is None:
        raise ValueError("a test order was given data without test rows")
    network = student_network([lane.run for lane in lanes], fold)
    load_lanes(network, [student.tensors for student in students])
    tensors = tensor_part(fold.arrays.test, fold.arrays.target_scale, fold.device)
    metrics = evaluate(network, fold, fold.arrays.test, tensors, len(lanes))
    bench.runtime.beat()
    logits = outputs_in_units(network, fold, tensors, len(lanes))
    cpu_s = (time.process_time() - clock) / len(lanes)
    run = lanes[0].run
    cost_key = student_key(run, sizes_of(fold, run), len(lanes), is_test=True)
    results = []
    for k, lane in enumerate(lanes):
        facts = students[k].facts | {"metrics": metrics[k], "cpu_s": cpu_s}
        trial = _trial(order, lane, facts, taught[k].facts, bench, started)
        trial = replace(trial, split="test", cost_key=cost_key)
        results.append(_Result(trial, [], _predictions(lane, fold, logits[k]), bench, k == 0))
    return results


def _predictions(lane: Lane, fold: Fold, logits_NC: Array) -> list[PredictionRow]:
    part = fold.arrays.test
    assert part is not None
    classes = fold.task == "classification"
    return [
        PredictionRow(
            trial_id=lane.trial_id,
            arm=lane.arm,
            pair_id=lane.pair_id,
            seed_index=lane.seed_index or 0,
            fold=lane.run.fold,
            row=str(row),
            unit=str(unit),
            label=float(label) if classes else float(label[0]) if len(label) == 1 else float("nan"),
            targets=[] if classes else [float(t) for t in label],
            outputs=[float(p) for p in outputs],
        )
        for row, unit, label, outputs in zip(
            part.rows, part.groups, part.labels, probabilities(fold, logits_NC), strict=True
        )
    ]


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
