"""What trainings cost here before: a price list from finished studies, and the bill of the one that ended."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmdistill.pipeline.costs import kind_of, lanes_of, same_shape
from mmdistill.records.study import StudyFolder

_COLUMNS = {
    "studies": ["created_at", "cpu_count", "torch"],
    "trials": ["order_id", "phase", "cost_key", "cpu_s", "device"],
    "stages": ["order_id", "stage", "cost_key", "cpu_s", "cache_hit"],
    "attempts": ["order_id", "outcome", "cpu_s", "started_at", "ended_at"],
}
# Of the cost of a lane alone, what a cohort pays once: .83 to .87 for networks of some 10^4 weights, less for
# larger ones (tests/benchmarks/bench_cohorts.py).
_SHARED = 0.85
# Reading the price list must not slow down the start of a run.
MOST_STUDIES = 50


class Price(NamedTuple):
    """What one lane or one stage costs, its share of evaluation, reading and writing included.

    Attributes:
        cpu_s: CPU seconds.
        wall_s: seconds that its order ran for it; what a device was held for.
    """

    cpu_s: float
    wall_s: float


class Prices(NamedTuple):
    """Prices by cost key."""

    by_key: Mapping[str, Price]

    def of(self, key: str) -> Price | None:
        """Return the price of a key; else by the same work in cohorts of other sizes; else None.

        A cohort of K costs a + b K: two sizes say both, one size their sum (:data:`_SHARED`).
        """
        if key in self.by_key:
            return self.by_key[key]
        known = [(lanes, self.by_key[other]) for lanes, other in same_shape(key, self.by_key).items()]
        if not known:
            return None
        (lanes, price), wanted = known[0], lanes_of(key)
        shared = _SHARED if len(known) == 1 else _shared(*((at, found.cpu_s) for at, found in known[:2]))
        factor = _per_lane(wanted, shared) / _per_lane(lanes, shared)
        return Price(factor * price.cpu_s, factor * price.wall_s)

    def guess(self, key: str) -> Price | None:
        """Return the mean price of all work of that kind; None where nothing of it was timed."""
        known = [price for other, price in self.by_key.items() if kind_of(other) == kind_of(key)]
        return _mean(known) if known else None


class Bill(NamedTuple):
    """What some orders were expected to cost, and what they did cost.

    Attributes:
        predicted: CPU seconds by the price list; what it does not know at the mean price of its kind.
        recorded: share of ``predicted`` that was timed before, 0 to 1.
        used: CPU seconds of the processes while they worked on these orders.
        trained: part of ``used`` that went into training alone.
    """

    predicted: float
    recorded: float
    used: float
    trained: float


def device_kind(asked: str) -> str:
    """Return what ``resources.device`` comes to on this machine, ``cpu`` or ``cuda``."""
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def recorded_prices(results: Path, device: str) -> Prices:
    """Return the price list of the finished studies in a folder of results.

    The newest study that timed a key says what it costs. Only studies on a machine with as many CPUs, with
    this version of torch and on this kind of device count.

    Args:
        results: each of its folders may be a study.
        device: ``cpu`` or ``cuda``.
    """
    folders = sorted(results.glob("*/compact/trials.parquet"), key=lambda path: path.stat().st_mtime)
    studies = [found for path in folders[-MOST_STUDIES:] if (found := _read(path.parent)) is not None]
    here = (os.cpu_count(), version("torch"))
    prices: dict[str, Price] = {}
    for study in sorted(studies, key=lambda tables: tables["studies"][-1]["created_at"]):
        row = study["studies"][-1]
        devices = {trial["device"].partition(":")[0] for trial in study["trials"]}
        if (row["cpu_count"], row["torch"]) == here and devices <= {device}:
            prices |= _prices(study)
    return Prices(prices)


def _read(compact: Path) -> dict[str, list[dict[str, Any]]] | None:
    """Return the tables of a study; None where they are damaged or from another version."""
    try:
        return {
            name: pq.read_table(compact / f"{name}.parquet", columns=columns).to_pylist()
            for name, columns in _COLUMNS.items()
        }
    except (OSError, pa.ArrowException, ValueError):
        return None


def _prices(study: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Price]:
    found: dict[str, list[Price]] = {}
    attempts = {row["order_id"]: row for row in study["attempts"] if row["outcome"] == "complete"}
    for order_id, rows in _work(study["trials"], study["stages"]):
        attempt = attempts.get(order_id)
        if attempt is None or attempt["cpu_s"] is None:
            continue
        # What is no training goes to all rows of the order alike.
        beside = (attempt["cpu_s"] - sum(cpu_s for _, cpu_s in rows)) / len(rows)
        wall = (attempt["ended_at"] - attempt["started_at"]).total_seconds() / max(attempt["cpu_s"], 1e-9)
        for key, cpu_s in rows:
            price = max(cpu_s + beside, 0.0)
            found.setdefault(key, []).append(Price(price, price * wall))
    return {key: _mean(prices) for key, prices in found.items()}


def _work(
    trials: Iterable[Mapping[str, Any]], stages: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Return each order that computed something, with key and CPU seconds of what it computed."""
    lanes: dict[str, list[tuple[str, float]]] = {}
    tests, cached = set(), set()
    for row in trials:
        mine = lanes.setdefault(row["order_id"], [])
        # A run that was given up cost what nobody knows.
        mine += [(row["cost_key"], row["cpu_s"])] if row["cost_key"] else []
        if row["phase"] == "test":
            tests.add(row["order_id"])
    shared: dict[str, list[tuple[str, float]]] = {}
    for row in stages:
        if row["order_id"] not in lanes:
            shared.setdefault(row["order_id"], []).append((row["cost_key"], row["cpu_s"] or 0.0))
        # A test order finds its students in the cache, any other one must have trained them.
        if row["cache_hit"] and (row["order_id"] in shared or row["stage"] == "student"):
            cached.add(row["order_id"])
    computed = ((order, rows) for order, rows in lanes.items() if order in tests or order not in cached)
    yield from ((order, rows) for order, rows in computed if rows)
    yield from ((order, rows) for order, rows in shared.items() if order not in cached)


def _per_lane(lanes: int, shared: float) -> float:
    """Return what a lane costs in a cohort, in units of one alone."""
    return 1 - shared + shared / lanes


def _shared(one: tuple[int, float], other: tuple[int, float]) -> float:
    """Return which share two sizes of cohorts speak for, with what a lane of them costs; 0 to 1."""
    (few, dear), (many, cheap) = sorted((one, other))
    once = (dear - cheap) / (1 / few - 1 / many)
    return min(max(once / max(once + dear - once / few, 1e-12), 0.0), 1.0)


def _mean(prices: Sequence[Price]) -> Price:
    cpu_s, wall_s = (sum(values) / len(prices) for values in zip(*prices, strict=True))
    return Price(cpu_s, wall_s)


def bill(folder: StudyFolder, before: Collection[str], prices: Prices) -> Bill:
    """Return the bill of the orders of a study that are on record now and were not ``before``."""
    new = [final for final in folder.finals() if final.order_id not in before]
    trials = [vars(row) for final in new for row in final.trials]
    stages = [vars(row) for final in new for row in final.stages]
    work = [row for _, rows in _work(trials, stages) for row in rows]
    exact = {key: prices.of(key) for key, _ in work}
    known = sum(price.cpu_s for key, _ in work if (price := exact[key]) is not None)
    guesses = [prices.guess(key) for key, _ in work if exact[key] is None]
    predicted = known + sum(guess.cpu_s for guess in guesses if guess is not None)
    orders = {final.order_id for final in new}
    used = sum(attempt.cpu_s or 0.0 for attempt in folder.attempts() if attempt.order_id in orders)
    trained = sum(cpu_s for key, cpu_s in work if kind_of(key) != "test")
    return Bill(predicted, known / predicted if predicted else 0.0, used, trained)
