"""What the tables of a study hold for its ablation: whose scores count, and which arms can be compared."""

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.errors import UnknownNameError
from mmdistill.randomness import derive_seed
from mmdistill.registry import unknown_name
from mmdistill.reports.arms import Declared, declared_arms
from mmdistill.reports.budget import validation_loss
from mmdistill.reports.configs import settings_by_arm
from mmdistill.reports.evidence import (
    Arm,
    Paired,
    Scheme,
    Trial,
    cells_by_arm,
    contrasted,
    mean_interval,
    over_folds,
    paired,
    scheme_of,
)
from mmdistill.reports.openings import Openings, openings_of
from mmdistill.statistics import Interval

Basis = Literal["test", "validation", "search"]


class Readings(NamedTuple):
    """Everything the summaries are computed from; arms that share pairs share their scheme.

    Attributes:
        predictions: of the runs in ``arms``; None where only metrics are known.
        settings: by arm and dotted path, see :func:`mmdistill.reports.configs.settings_by_arm`.
        is_beside: whether ``study["score"]`` is another metric than the one the study is about.
    """

    study: Mapping[str, Any]
    declared: Sequence[Declared]
    trials: Mapping[str, Sequence[Trial]]
    basis: Basis
    groups: Mapping[str, frozenset[str]]
    schemes: Mapping[str, Scheme]
    arms: Mapping[str, Arm]
    openings: Openings
    predictions: pa.Table | None = None
    is_beside: bool = False
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def compare(self, arm: str, against: str) -> Paired:
        """Return the paired difference of two arms, ``arm`` minus ``against``."""
        nothing = Arm({}, None)
        ours, theirs = self.arms.get(arm, nothing), self.arms.get(against, nothing)
        scheme = self.schemes[arm]
        return paired(ours, theirs, score=self.study["score"], scheme=scheme, seed=self._resampling)

    def contrast(self, arms: Sequence[str], weight_CA: npt.ArrayLike) -> list[Paired]:
        """Return paired weighted sums of the scores of arms that share pairs, one per row of weights."""
        nothing = Arm({}, None)
        found = [self.arms.get(arm, nothing) for arm in arms]
        scheme = self.schemes[arms[0]]
        return contrasted(found, weight_CA, score=self.study["score"], scheme=scheme, seed=self._resampling)

    @property
    def _resampling(self) -> int:
        # One seed for all comparisons: they share their resamples, so A - B is exactly -(B - A).
        return derive_seed(self.study["seed"], "reports")

    def score(self, arm: str) -> Interval:
        """Return the mean score of an arm with its 95 % interval over replicates."""
        found = self.arms.get(arm, Arm({}, None))
        return mean_interval(found, score=self.study["score"], scheme=self.schemes[arm])

    def scheme_of_runs(self, arm: str) -> Scheme:
        """Return what counts as one replicate of what confirmed runs hold, such as scores on validation rows.

        That has no value per subject: where there are several folds, these are the replicates.
        """
        scheme, group = self.schemes[arm], self.groups[arm]
        folds = {
            run["fold"]
            for other in group
            for run in self.trials.get(other, ())
            if run["phase"] in ("confirm", "test")
        }
        if scheme.replicate == "folds" or len(folds) < 2:
            return scheme
        has_holdout = any(one.tuning == "fixed_holdout" for one in self.declared if one.name in group)
        return over_folds(len(folds), scheme.unit, has_holdout=has_holdout)

    def are_apart(self, arm: str, against: str) -> bool:
        """Return whether two arms ran on other folds, so that no pair can be shared."""
        return self.groups[arm].isdisjoint(self.groups[against])

    def remarks(self, arm: str, against: str) -> tuple[str, ...]:
        """Return what to say with any comparison of two arms."""
        found = [_frozen_mark(one) for one in self.declared if one.name in (arm, against) and one.frozen]
        if self.are_apart(arm, against):
            found.append("they were tested on other folds, so no pair can be shared")
        return tuple(found)

    def missing(self, name: str) -> list[str]:
        """Return the pairs that arms on the same folds finished and this one did not, with their fate."""
        if self.basis == "search":
            return []
        everybody = {
            pair for other in self.groups[name] if other in self.arms for pair in self.arms[other].runs
        }
        done = self.arms[name].runs.keys() if name in self.arms else set()
        repeats = sorted(
            (trial for trial in self.trials.get(name, ()) if trial["phase"] in ("confirm", "test")),
            key=lambda trial: trial["status"] != "complete",
        )
        fate = {trial["pair_id"]: trial["status"] for trial in repeats}
        return [
            f"{pair} ({fate[pair]})" if fate.get(pair, "complete") != "complete" else f"{pair} (not finished)"
            for pair in sorted(everybody - done)
        ]


def _frozen_mark(arm: Declared) -> str:
    return f"{arm.name} is frozen: knock-out, biased towards {arm.frozen}"


def readings_of(tables: Mapping[str, pa.Table], metric: str | None = None) -> Readings:
    """Return what the tables of a study hold for its ablation, as far as it has come.

    Args:
        tables: all of the study.
        metric: what to read in place of the study's score, which it is by default.

    Raises:
        UnknownNameError: no run has that metric.
    """
    study: dict[str, Any] = tables["studies"].to_pylist()[-1]
    is_beside = metric not in (None, study["score"])
    if metric is not None:
        study = study | {"score": _known_metric(metric, tables["trials"])}
    everything = tables["trials"].drop_columns(["config_json"]).to_pylist()
    by_arm: dict[str, list[Trial]] = {}
    for trial in everything:
        by_arm.setdefault(trial["arm"], []).append(trial)
    basis, chosen = _chosen(everything, study)
    usable = [trial for trial in chosen if _usable(trial, study["score"])]
    kept = _predictions_of(usable, tables["predictions"])
    cells = cells_by_arm(kept, study["score"])
    runs: dict[str, dict[str, Trial]] = {}
    for trial in usable:
        runs.setdefault(trial["arm"], {})[trial["pair_id"]] = trial
    declared = declared_arms(study, by_arm)
    groups = _sharing_pairs(declared, by_arm)
    holdouts = {arm.name for arm in declared if arm.tuning == "fixed_holdout"}
    return Readings(
        study=study,
        declared=declared,
        trials=by_arm,
        basis=basis,
        groups=groups,
        schemes=_schemes(groups, usable, kept, study["score"], holdouts),
        arms={name: Arm(pairs, cells.get(name)) for name, pairs in runs.items()},
        openings=openings_of(tables["test_openings"]),
        predictions=kept,
        is_beside=is_beside,
        settings=settings_by_arm(usable, tables["trials"]),
    )


def _known_metric(metric: str, trials: pa.Table) -> str:
    known = sorted(field.name for field in trials.schema.field("metrics").type)
    if metric not in known:
        raise UnknownNameError([unknown_name("metric", metric, "--metric", known)])
    return metric


def _sharing_pairs(
    declared: Sequence[Declared], trials: Mapping[str, Sequence[Trial]]
) -> dict[str, frozenset[str]]:
    """Return for each arm the arms that ran on the same pairs in any phase, itself included.

    Arms with other folds share none. One that has not begun counts with the first arm that has.
    """
    ran = {arm.name: {trial["pair_id"] for trial in trials.get(arm.name, ())} for arm in declared}
    first: set[str] = next((pairs for pairs in ran.values() if pairs), {""})
    groups: list[tuple[set[str], set[str]]] = []
    for arm in declared:
        names, pairs = {arm.name}, ran[arm.name] or first
        for group in [group for group in groups if group[1] & pairs]:
            names, pairs = names | group[0], pairs | group[1]
            groups.remove(group)
        groups.append((names, pairs))
    return {name: frozenset(names) for names, _ in groups for name in names}


def _schemes(
    groups: Mapping[str, frozenset[str]],
    usable: Sequence[Trial],
    kept: pa.Table,
    score: str,
    holdouts: Collection[str],
) -> dict[str, Scheme]:
    known: dict[frozenset[str], Scheme] = {}
    for names in set(groups.values()):
        trials = [trial for trial in usable if trial["arm"] in names]
        predictions = kept.filter(pc.is_in(kept["arm"], pa.array(sorted(names))))
        # What is kept for tuning is part of a pair, so those who share pairs keep the same rows.
        has_holdout = any(trial["arm"] in holdouts for trial in trials)
        known[names] = scheme_of(trials, predictions, score=score, has_holdout=has_holdout)
    return {name: known[names] for name, names in groups.items()}


def _chosen(trials: Sequence[Trial], study: Mapping[str, Any]) -> tuple[Basis, list[Trial]]:
    """Return the runs whose scores are reported: tested, else repeated, else the best of each search."""
    bases: tuple[tuple[Basis, str], ...] = (("test", "test"), ("validation", "confirm"))
    for basis, phase in bases:
        chosen = [trial for trial in trials if (trial["phase"], trial["split"]) == (phase, basis)]
        if chosen:
            return basis, chosen
    best: dict[tuple[str, int], Trial] = {}
    for trial in trials:
        key = (trial["arm"], trial["fold"])
        if trial["phase"] == "search" and _usable(trial, study["score"]):
            # By what the search ranks by, so that it is the trial the protocol holds for the best.
            best[key] = min(best.get(key, trial), trial, key=lambda run: validation_loss(run, study["task"]))
    return "search", list(best.values())


def _usable(trial: Trial, score: str) -> bool:
    value = (trial["metrics"] or {}).get(score)
    return trial["status"] == "complete" and value is not None and math.isfinite(value)


def _predictions_of(trials: Sequence[Trial], predictions: pa.Table) -> pa.Table:
    wanted = pa.array([trial["trial_id"] for trial in trials], pa.string())
    return predictions.filter(pc.is_in(predictions["trial_id"], wanted))
