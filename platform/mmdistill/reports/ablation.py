"""The ablation table as data: one summary per arm, the planned contrasts, and what to be careful about."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.randomness import derive_seed
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.budget import Budget, budget_of, validation_loss
from mmdistill.reports.claims import (
    Claim,
    Question,
    exploratory_claims,
    planned_claims,
    sentence,
    too_few,
)
from mmdistill.reports.evidence import (
    Arm,
    Paired,
    Scheme,
    Trial,
    cells_by_arm,
    mean_interval,
    paired,
    scheme_of,
)
from mmdistill.statistics import Interval

Basis = Literal["test", "validation", "search"]


class ArmSummary(NamedTuple):
    """One line of the table; metrics are means over pairs, None where not measured.

    Attributes:
        score: mean over replicates with its 95 % interval, higher is better.
        log_loss: in nats.
        calibration_error: adaptive calibration error of the raw probabilities, 0 to 1.
        worst_class: accuracy of the worst class, 0 to 1.
        against_baseline: difference to the study's baseline; None for the baseline itself.
        against_reference: difference to the study's reference; None for it, or without one.
        missing: pairs that another arm finished and this one did not, with what became of them.
        notes: stamps of the runs and of the arm.
    """

    name: str
    recipe: str
    score: Interval
    log_loss: float | None
    calibration_error: float | None
    worst_class: float | None
    against_baseline: Claim | None
    against_reference: Claim | None
    budget: Budget
    missing: tuple[str, ...]
    notes: tuple[str, ...]


class Ablation(NamedTuple):
    """The whole answer of a study.

    Attributes:
        basis: what the scores were computed on: ``test``; ``validation`` repetitions while the test split is
            closed; the best trial of the ``search`` while there are no repetitions.
        openings: how often the test split was opened.
        sentences: one per planned contrast.
        warnings: what a reader must know before believing a number.
    """

    study: str
    dataset: str
    score_name: str
    baseline: str
    reference: str | None
    margin: float
    basis: Basis
    scheme: Scheme
    openings: int
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Claim, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def summarise(root: Path) -> Ablation:
    """Return the ablation of the study in ``root``, as far as it has come.

    Raises:
        InputError: there is no study in ``root``.
        StudyError: a record is damaged.
    """
    return summarise_tables(latest(StudyFolder.open(root)))


class _Readings(NamedTuple):
    """Everything the summaries are computed from."""

    study: Mapping[str, Any]
    declared: Sequence[Mapping[str, Any]]
    trials: Mapping[str, Sequence[Trial]]
    basis: Basis
    scheme: Scheme
    arms: Mapping[str, Arm]

    def compare(self, arm: str, against: str) -> Paired:
        nothing = Arm({}, None)
        ours, theirs = self.arms.get(arm, nothing), self.arms.get(against, nothing)
        # One seed for all comparisons: they share their resamples, so A - B is exactly -(B - A).
        seed = derive_seed(self.study["seed"], "reports")
        return paired(ours, theirs, score=self.study["score"], scheme=self.scheme, seed=seed)


def summarise_tables(tables: Mapping[str, pa.Table]) -> Ablation:
    """Return the ablation of a study from its seven tables."""
    readings = _readings(tables)
    study, scheme = readings.study, readings.scheme
    judged = {"margin": study["margin"], "judged": readings.basis == "test"}
    planned = [
        Question(contrast["arm"], contrast["against"], contrast["question"])
        for contrast in json.loads(study["contrasts_json"])
    ]
    contrasts = planned_claims(planned, readings.compare, **judged)
    arms = _summaries(readings, contrasts, partial(exploratory_claims, compare=readings.compare, **judged))
    return Ablation(
        study=study["name"],
        dataset=study["dataset"],
        score_name=study["score"],
        baseline=study["baseline"],
        reference=study["reference"],
        margin=study["margin"],
        basis=readings.basis,
        scheme=scheme,
        openings=len(pc.unique(tables["test_openings"]["opening"])),
        arms=tuple(arms),
        contrasts=tuple(contrasts),
        sentences=tuple(sentence(claim, scheme=scheme, margin=study["margin"]) for claim in contrasts),
        warnings=tuple(_warnings(readings, arms, contrasts)),
    )


def _readings(tables: Mapping[str, pa.Table]) -> _Readings:
    study: dict[str, Any] = tables["studies"].to_pylist()[-1]
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
    return _Readings(
        study=study,
        declared=_declared(study, by_arm),
        trials=by_arm,
        basis=basis,
        scheme=scheme_of(usable, kept),
        arms={name: Arm(pairs, cells.get(name)) for name, pairs in runs.items()},
    )


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


def _declared(study: Mapping[str, Any], found: Iterable[str]) -> list[Mapping[str, Any]]:
    stated = {arm["name"]: arm for arm in json.loads(study["arms_json"])}
    return [stated.get(name, {"name": name}) for name in declared_arms(study, found)]


def declared_arms(study: Mapping[str, Any], found: Iterable[str]) -> list[str]:
    """Return the arms in the order of the study file, then any others that left a row."""
    stated = [arm["name"] for arm in json.loads(study["arms_json"])]
    return stated + sorted(set(found) - set(stated))


def _summaries(
    readings: _Readings, contrasts: Sequence[Claim], explore: "partial[list[Claim]]"
) -> list[ArmSummary]:
    columns = []
    for other in (readings.study["baseline"], readings.study["reference"]):
        known = {claim.arm: claim for claim in contrasts if claim.against == other}
        rest = [arm["name"] for arm in readings.declared if arm["name"] not in known and arm["name"] != other]
        asked = [Question(name, other) for name in rest] if other else []
        columns.append(known | {claim.arm: claim for claim in explore(asked)})
    return [_summary(readings, arm, columns[0], columns[1]) for arm in readings.declared]


def _summary(
    readings: _Readings,
    arm: Mapping[str, Any],
    against_baseline: Mapping[str, Claim],
    against_reference: Mapping[str, Claim],
) -> ArmSummary:
    name, trials = arm["name"], readings.trials.get(arm["name"], ())
    runs = readings.arms.get(name, Arm({}, None)).runs
    score_name = readings.study["score"]
    scores = {pair: run["metrics"][score_name] for pair, run in runs.items()}
    return ArmSummary(
        name=name,
        recipe=arm.get("recipe", ""),
        score=mean_interval(scores, runs, readings.scheme),
        log_loss=_mean(runs, "log_loss"),
        calibration_error=_mean(runs, "ace"),
        worst_class=_mean(runs, "worst_class_accuracy"),
        against_baseline=against_baseline.get(name),
        against_reference=against_reference.get(name),
        budget=budget_of(trials, arm.get("dimensions") or 0, readings.study["task"]),
        missing=tuple(_missing(readings, runs, trials)),
        notes=tuple(_notes(arm, trials)),
    )


def _mean(runs: Mapping[str, Trial], metric: str) -> float | None:
    values = [run["metrics"].get(metric) for run in runs.values()]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _missing(readings: _Readings, runs: Mapping[str, Trial], trials: Sequence[Trial]) -> list[str]:
    if readings.basis == "search":
        return []
    everybody = {pair for arm in readings.arms.values() for pair in arm.runs}
    repeats = sorted(
        (trial for trial in trials if trial["phase"] in ("confirm", "test")),
        key=lambda trial: trial["status"] != "complete",
    )
    fate = {trial["pair_id"]: trial["status"] for trial in repeats}
    return [
        f"{pair} ({fate[pair]})" if fate.get(pair, "complete") != "complete" else f"{pair} (not finished)"
        for pair in sorted(everybody - runs.keys())
    ]


def _notes(arm: Mapping[str, Any], trials: Sequence[Trial]) -> list[str]:
    stamps = sorted({trial["note"] for trial in trials if trial["phase"] != "search" and trial["note"]})
    return [note for note in (arm.get("note"), *stamps) if note]


def _warnings(readings: _Readings, arms: Sequence[ArmSummary], contrasts: Sequence[Claim]) -> list[str]:
    warnings = []
    if readings.basis == "validation":
        warnings.append("validation, test not opened yet: these numbers are optimistic and carry no verdict")
    if readings.basis == "search":
        warnings.append(
            "best trial of each search on validation rows, nothing repeated yet: no comparison holds"
        )
    few = too_few([claim for claim in contrasts if claim.seeds.n], readings.scheme)
    if few and readings.basis == "test":
        warnings.append(few)
    warnings += [f"{arm.name} lacks the pairs {', '.join(arm.missing)}" for arm in arms if arm.missing]
    shown = [*contrasts, *(arm.against_baseline for arm in arms if arm.against_baseline)]
    if readings.basis == "test" and any(c.seeds.n > 1 and math.isnan(c.crossed.low) for c in shown):
        warnings.append(
            "a difference without its seeds x units interval lacks predictions or compares other rows"
        )
    return warnings
