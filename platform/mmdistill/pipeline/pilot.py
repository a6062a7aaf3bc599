"""A few steps of every training that was never timed here, and what they make of a whole one.

A training of E epochs costs E * (steps * step + validation) and, once, its evaluation; a step is the
difference between a pass over few batches and one over more. A race is taken to stop nobody.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mmdistill.data.samples import has_label
from mmdistill.models.network import Network
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.cohorts import made_up_outputs
from mmdistill.pipeline.costs import kind_of, lanes_of, order_keys, same_shape, sizes_of
from mmdistill.pipeline.evaluation import evaluate
from mmdistill.pipeline.fold import Fold, tensor_part
from mmdistill.pipeline.order import Order
from mmdistill.pipeline.prices import Price
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.studying import cohort_key, student_network, train_students
from mmdistill.pipeline.teaching import align_teachers, teacher_outputs, train_teachers
from mmdistill.settings import edited
from mmdistill.training.runtime import LocalRuntime

FEW, MORE = 1, 5


class Sample(NamedTuple):
    """An order with a fold of its data: what a key is tried on."""

    order: Order
    fold: Fold


def pilot(samples: Mapping[str, Sample], seconds: float) -> dict[str, Price]:
    """Return a price for as many cost keys as ``seconds`` of CPU time allow, largest cohorts first."""
    clock, prices = time.process_time(), {}
    for key in _in_turn(list(samples)):
        if time.process_time() - clock > seconds:
            break
        prices[key] = _price(key, samples[key])
    return prices


def _in_turn(keys: Sequence[str]) -> list[str]:
    """Return the keys so that a part of them says most: the largest cohort of every work, kinds in turn."""
    place: dict[str, tuple[int, int, str]] = {}
    first: Counter[str] = Counter()
    for key in sorted(keys, key=lambda key: (-lanes_of(key), key)):
        larger = len(same_shape(key, place))
        place[key] = (larger, first[kind_of(key)], key)
        first[kind_of(key)] += not larger
    return sorted(keys, key=lambda key: place[key])


def _price(key: str, sample: Sample) -> Price:
    kind, order, fold = kind_of(key), sample.order, sample.fold
    if kind in {"student", "test"}:
        runs = _cohort(key, order, fold)
        cost = _student(runs, fold) if kind == "student" else _reading(runs, fold)
    else:
        runs = [canonical(request.run) for request in order.stages]
        parts = {"teacher": _teacher, "alignment": _alignment, "teacher_outputs": _outputs}
        cost = parts[kind](order.stages[0].name, runs, fold)
    return Price(cost / len(runs), cost / len(runs))


def _cohort(key: str, order: Order, fold: Fold) -> list[RunSettings]:
    keys = order_keys(order, sizes_of(fold, order.lanes[0].run))
    runs = [canonical(lane.run) for lane, found in zip(order.lanes, keys, strict=True) if found == key]
    cohorts = Counter(cohort_key(run) for run in runs)
    return [run for run in runs if cohort_key(run) == cohorts.most_common(1)[0][0]]


def _student(runs: Sequence[RunSettings], fold: Fold) -> float:
    run, steps = runs[0], max(1, len(fold.train) // runs[0].batch_size)
    short = [one.model_copy(update={"epochs": 1}) for one in runs]
    spent: dict[str, float] = {}

    def work(part: Fold) -> float:
        clock = _clock(fold)
        entries = train_students(short, made_up_outputs(run, len(runs), part), part, _runtime(fold))
        trained: float = sum(entry.facts["cpu_s"] for entry in entries)
        spent["evaluation"] = _clock(fold) - clock - trained
        return trained

    return _whole(work, fold, run.batch_size, steps, run.epochs) + spent["evaluation"]


def _reading(runs: Sequence[RunSettings], fold: Fold) -> float:
    network = student_network(runs, fold)
    clock = _clock(fold)
    evaluate(network, fold, fold.arrays.validation, fold.validation, len(runs))
    return _clock(fold) - clock


def _teacher(name: str, runs: Sequence[RunSettings], fold: Fold) -> float:
    def work(part: Fold) -> float:
        clock = _clock(fold)
        train_teachers(_short(runs), name, part, _runtime(fold))
        return _clock(fold) - clock

    return _whole(work, fold, runs[0].batch_size, _labelled_steps(runs[0], fold), runs[0].teachers.epochs)


def _alignment(_name: str, runs: Sequence[RunSettings], fold: Fold) -> float:
    teachers = _teachers(runs, fold)

    def work(part: Fold) -> float:
        clock = _clock(fold)
        align_teachers(_short(runs), teachers, part, _runtime(fold))
        return _clock(fold) - clock

    return _whole(work, fold, runs[0].batch_size, _labelled_steps(runs[0], fold), runs[0].alignment.epochs)


def _outputs(_name: str, runs: Sequence[RunSettings], fold: Fold) -> float:
    teachers, aligned = _teachers(runs, fold), None
    if runs[0].alignment.kind != "none":
        part = _first(fold, MORE * runs[0].batch_size)
        aligned = align_teachers(_short(runs), teachers, part, _runtime(fold))
    clock = _clock(fold)
    teacher_outputs(runs, teachers, aligned, fold)
    return _clock(fold) - clock


def _whole(work: Callable[[Fold], float], fold: Fold, batch: int, steps: int, epochs: int) -> float:
    """Return the cost of a whole training from passes over few and over more batches."""
    more = max(FEW, min(MORE, len(fold.train) // batch))
    parts = {count: _first(fold, count * batch) for count in {FEW, more}}
    # What is done for the first time loads code and memory.
    work(parts[FEW])
    cost = {count: work(part) for count, part in parts.items()}
    step = (cost[more] - cost[FEW]) / (more - FEW) if more > FEW else cost[more]
    step = min(max(step, 0.0), cost[more] / more)
    return epochs * (max(cost[more] - more * step, 0.0) + steps * step)


def _first(fold: Fold, rows: int) -> Fold:
    """Return a fold with the first labelled training rows only."""
    part = fold.arrays.train
    keep = np.flatnonzero(has_label(part.labels))[: max(rows, 2)]
    inputs = {name: x_ND[keep] for name, x_ND in part.inputs.items()}
    few = replace(part, inputs=inputs, labels=part.labels[keep], groups=part.rows[keep], rows=part.rows[keep])
    return replace(
        fold,
        arrays=replace(fold.arrays, train=few),
        train=tensor_part(few, fold.arrays.target_scale, fold.device),
    )


def _short(runs: Sequence[RunSettings]) -> list[RunSettings]:
    edits = {"teachers.epochs": 1, "alignment.epochs": 1, "data.label_fraction": 1.0}
    return [RunSettings.model_validate(edited(run.as_json(), edits)) for run in runs]


def _labelled_steps(run: RunSettings, fold: Fold) -> int:
    return max(1, sizes_of(fold, run).labelled // run.batch_size)


def _teachers(runs: Sequence[RunSettings], fold: Fold) -> dict[str, list[Entry]]:
    """Return teachers as they are before training."""
    found = {}
    for name, modalities in runs[0].frozen_networks().items():
        seeds = [0] * (runs[0].teachers.out_of_fold + 1)
        network = Network(fold.widths(modalities), fold.outputs, runs[0].network, seeds)
        found[name] = [Entry(dict(network.state_dict()), {})] * len(runs)
    return found


def _runtime(fold: Fold) -> LocalRuntime:
    return LocalRuntime(fold.device)


def _clock(fold: Fold) -> float:
    """Return CPU seconds, or those of the wall clock where a device works meanwhile."""
    return time.process_time() if fold.device.type == "cpu" else time.perf_counter()
