"""The TensorBoard tree of a study: a view of its records, kept up to date, or written anew anywhere.

``<arm>/<phase>...`` are the runs of an arm, ``means/<arm>`` the means of its confirmed ones. What is shown
depends on the records alone, never on the order in which they came.
"""

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa

from mmdistill.records.charts import layout
from mmdistill.records.criterion import CRITERIA
from mmdistill.records.events import (
    has_events,
    remove_events,
    write_experiment_events,
    write_mean_events,
    write_text_event,
    write_trial_events,
)
from mmdistill.records.finals import Final
from mmdistill.records.pictures import matrices_of, picture
from mmdistill.records.rows import PHASES, TrialRow
from mmdistill.records.study import StudyFolder
from mmdistill.statistics import Interval, t_interval

TENSORBOARD = "tensorboard"
MOST_RUNS = 500
MEANS = "means"
SHOWN_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "log_loss", "ace", "macro_f1", "worst_class_accuracy"),
    "regression": ("ccc", "rmse"),
}
# An arm's confirmed runs are shown before all others, then those on the test rows; searched ones come last.
_PHASES = ("confirm", "test", "validate", "search")
_ABOUT = """\
**{name}**: `{score}` on `{dataset}`.

- `means/<arm>`: the mean of every curve over the confirmed repetitions of an arm, where they are complete; \
`..._low` and `..._high` are the ends of its 95 % Student t interval over repetitions (the folds of one are \
averaged first). Its picture is that of the first repetition.
- `<arm>/<phase>...`: single runs. `final/` are their metrics at the epoch that was kept.
- `structure`: cosine similarities between the features of some training rows, sorted by label: of the \
student, of what it learns from, and the transport plan between the two where the arm has one.
- **No run is selected?** With more than 40 of them pages start so: type `^means` above the \
list of runs, or press `Toggle all runs`.
- {runs}
"""


class Board:
    """The tree of one study, below ``root``.

    Attributes:
        root: of the tree.
    """

    def __init__(self, study: StudyFolder, root: Path, most: int = MOST_RUNS) -> None:
        """Look at a study; nothing is written.

        Args:
            study: its records.
            root: the folder of the tree; made if it is not there.
            most: how many single runs are shown.
        """
        self.root = root
        self._study, self._most = study, most
        self._shown = _Shown(most)
        self._confirmed: dict[str, set[str]] = {}

    @property
    def runs(self) -> int:
        """Return how many single runs are shown."""
        return len(self._shown)

    @property
    def left_out(self) -> int:
        """Return how many are not, for there are too many."""
        return self._shown.left_out

    def catch_up(self) -> None:
        """Show every result on record; what is shown already stays."""
        self._show_study()
        finals = [final for final in self._study.finals() if final.trials]
        for final in finals:
            for place in self._note(final):
                remove_events(self.root / place)
        stale = {arm for arm in self._confirmed if not has_events(self.root / MEANS / arm)}
        for final in finals:
            missing = [row for row in final.trials if not has_events(self.root / self.place(row))]
            self._write(final, missing)
            stale |= {row.arm for row in missing if final.kind == "confirm"}
        for arm in stale:
            self._write_mean(arm)

    def show(self, final: Final) -> None:
        """Show a result that has just been recorded."""
        for place in self._note(final):
            remove_events(self.root / place)
        self._write(final, final.trials)
        if final.kind == "confirm":
            for arm in {row.arm for row in final.trials}:
                self._write_mean(arm)

    def place(self, trial: TrialRow) -> str:
        """Return the name of a run: its folder below the root."""
        repetition = {
            "validate": f"-seed{trial.seed_index}",
            "confirm": f"-{trial.seed_index or 0:03d}",
            "test": f"-{trial.seed_index or 0:03d}",
        }.get(trial.phase, "")
        return f"{_proposal(trial)}{repetition}{self._fold(trial)}"

    def _fold(self, trial: TrialRow) -> str:
        return f"-fold{trial.fold}" if self._has_folds else ""

    @cached_property
    def _has_folds(self) -> bool:
        return any(run["data"]["folds"]["scheme"] != "official" for run in self._runs())

    def _runs(self) -> Iterator[Mapping[str, Any]]:
        """Return the settings of every arm."""
        return (arm["run"] for arm in self._study.resolved.get("arms", {}).values())

    def _show_study(self) -> None:
        row = self._study.row
        planned = sum(sum(arm.get("planned", {}).values()) for arm in json.loads(row.arms_json))
        write_experiment_events(
            self.root,
            _domains(self._study.resolved),
            SHOWN_METRICS[row.task],
            layout(row.score, _features(self._runs())),
        )
        runs = _runs_text(planned, self._most)
        about = _ABOUT.format(name=row.name, score=row.score, dataset=row.dataset, runs=runs)
        write_text_event(self.root / MEANS, "about", about)

    def _note(self, final: Final) -> list[str]:
        """Take note of the runs of a result; return those that are shown no more."""
        if final.kind == "confirm":
            for row in final.trials:
                self._confirmed.setdefault(row.arm, set()).add(final.order_id)
        task = self._study.row.task
        gone = (self._shown.add(row.arm, _rank(row, task), self.place(row)) for row in final.trials)
        return [place for place in gone if place is not None]

    def _write(self, final: Final, trials: Iterable[TrialRow]) -> None:
        kept = [row for row in trials if self.place(row) in self._shown]
        if not kept:
            return
        curves, matrices = _by_trial(self._study.side(final, "curves")), self._study.side(final, "matrices")
        shown = SHOWN_METRICS[self._study.row.task]
        for trial in kept:
            write_trial_events(
                self.root / self.place(trial),
                hparams={"arm": trial.arm, "phase": trial.phase} | trial.parameters,
                metrics={name: trial.metrics[name] for name in shown if name in trial.metrics},
                curves=curves.get(trial.trial_id, ()),
                row=f"{_proposal(trial)}{self._fold(trial)}",
                picture=_picture(matrices, trial),
            )

    def _write_mean(self, arm: str) -> None:
        runs = [
            (row, final)
            for final in map(self._study.final, sorted(self._confirmed[arm]))
            for row in final.trials
            if row.arm == arm and row.status == "complete"
        ]
        if not runs:
            remove_events(self.root / MEANS / arm)
            return
        finals = {final.order_id: final for _, final in runs}
        curves: dict[str, list[_Point]] = {}
        for final in finals.values():
            curves |= _by_trial(self._study.side(final, "curves"))
        repetitions: dict[int, list[list[_Point]]] = {}
        for row, _ in runs:
            repetitions.setdefault(row.seed_index or 0, []).append(curves.get(row.trial_id, []))
        first, final = min(runs, key=lambda run: (run[0].seed_index or 0, run[0].fold))
        drawn = _picture(self._study.side(final, "matrices"), first)
        write_mean_events(self.root / MEANS / arm, _means(list(repetitions.values())), drawn)


class _Point(NamedTuple):
    """One value of one curve."""

    name: str
    epoch: int
    value: float


class _Shown:
    """The runs that are shown, at most so many: each arm keeps its first ones, however many it has."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._arms: dict[str, list[tuple[tuple[float, ...], str]]] = {}
        self._places: dict[str, tuple[str, tuple[float, ...]]] = {}
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: str) -> bool:
        return place in self._places

    def add(self, arm: str, rank: tuple[float, ...], place: str) -> str | None:
        """Add a run, or give it another rank; return the one that has to go, if any has."""
        if place in self._places:
            _, former = self._places[place]
            self._arms[arm].remove((former, place))
        bisect.insort(self._arms.setdefault(arm, []), (rank, place))
        self._places[place] = (arm, rank)
        if len(self._places) <= self._most:
            return None
        fullest = max(self._arms, key=lambda name: (len(self._arms[name]), name))
        _, gone = self._arms[fullest].pop()
        del self._places[gone]
        self.left_out += 1
        return gone


def _rank(trial: TrialRow, task: str) -> tuple[float, ...]:
    """Return what the runs of an arm are sorted by; search runs by what the search minimised."""
    found = CRITERIA[task].in_metrics(trial.metrics)
    value = float("inf") if found is None else found
    first = value if trial.phase == "search" else float(trial.seed_index or 0)
    return (_PHASES.index(trial.phase), first, trial.number or 0, trial.fold)


def _proposal(trial: TrialRow) -> str:
    """Return what names a trial without its seed, so that the repetitions of a proposal share it."""
    number = f"-{trial.number:03d}" if trial.phase in {"search", "validate"} else ""
    return f"{trial.arm}/{trial.phase}{number}"


def _by_trial(curves: pa.Table) -> dict[str, list[_Point]]:
    found: dict[str, list[_Point]] = {}
    columns = (curves[name].to_pylist() for name in ("trial_id", "name", "epoch", "value"))
    for trial_id, *point in zip(*columns, strict=True):
        found.setdefault(trial_id, []).append(_Point(*point))
    return found


def _picture(matrices: pa.Table, trial: TrialRow) -> bytes | None:
    found, labels = matrices_of(matrices, trial.trial_id)
    return picture(found, labels) if found else None


def _means(repetitions: Sequence[Sequence[Sequence[_Point]]]) -> Iterator[tuple[str, int, Interval]]:
    """Return the mean of each curve over repetitions, the folds of each averaged first."""
    values: dict[tuple[str, int], list[float]] = {}
    for folds in repetitions:
        mine: dict[tuple[str, int], list[float]] = {}
        for point in (point for curves in folds for point in curves):
            mine.setdefault((point.name, point.epoch), []).append(point.value)
        for key, found in mine.items():
            values.setdefault(key, []).append(fmean(found))
    for (name, epoch), found in sorted(values.items()):
        yield name, epoch, t_interval(found)


def _runs_text(planned: int, most: int) -> str:
    if planned <= most:
        return f"Every one of up to {planned} runs is shown."
    return (
        f"Of {planned} planned runs at most {most} are shown, as many of each arm: the confirmed ones, then "
        "those on test rows, then the best of the search. The means are over all. More: `mmdistill export "
        f"tensorboard STUDY FOLDER --runs {planned}`."
    )


def _features(runs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return what ``only`` of the layout may ask for."""
    found = set()
    for run in runs:
        active = {name for name, term in run["terms"].items() if term["weight"] > 0}
        teachers = run["teachers"]
        if active and teachers["training"] == "joint":
            found.add("teacher that trains along")
        if active and (len(teachers["pool"]) > 1 or "each" in teachers["pool"]):
            found.add("several teachers")
        if "transport" in active:
            found.add("transport")
    return found


def _domains(resolved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of the HParams page: what tells its rows apart, and what any arm searches."""
    arms = resolved.get("arms", {})
    order = resolved.get("order", list(arms))
    spaces: dict[str, list[Mapping[str, Any]]] = {}
    for name in order:
        for path, dimension in arms[name]["space"].items():
            spaces.setdefault(path, []).append(dimension)
    names = {"arm": list(order), "phase": list(PHASES)}
    return {column: {"choice": options} for column, options in names.items()} | {
        path: _united(dimensions) for path, dimensions in spaces.items()
    }


def _united(dimensions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one domain with all values of one setting: arms may search different parts of it."""
    options = [option for found in dimensions for option in found.get("choice", ())]
    ends = [end for found in dimensions if "low" in found for end in (found["low"], found["high"])]
    if not ends:
        return {"choice": list({json.dumps(option, sort_keys=True): option for option in options}.values())}
    ends += [float(option) for option in options if isinstance(option, int | float)]
    return {"low": min(ends), "high": max(ends)}
