"""The ablation table as data: one summary per arm, the planned contrasts, and what to be careful about."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.arms import Declared
from mmdistill.reports.budget import Budget, budget_of
from mmdistill.reports.claims import (
    Claim,
    Question,
    exploratory_claims,
    planned_claims,
    sentence,
    too_few,
    too_few_alone,
    turned_round,
)
from mmdistill.reports.contributions import Lattice, contributions
from mmdistill.reports.evidence import Arm, Scheme, Trial
from mmdistill.reports.harm import HarmSet, harm_sets
from mmdistill.reports.readings import Basis, Readings, readings_of
from mmdistill.statistics import Interval

Explore = Callable[[Sequence[Question]], list[Claim]]


class TargetScore(NamedTuple):
    """The mean score of an arm on one target of a regression, over pairs; None where not measured."""

    target: str
    mean: float | None


class ArmSummary(NamedTuple):
    """One line of the table; metrics are means over pairs, None where not measured.

    Attributes:
        declared: what the study says of the arm.
        scheme: what counts as one replicate.
        score: mean over replicates with its 95 % interval, higher is better.
        log_loss: in nats.
        calibration_error: adaptive calibration error of the raw probabilities, 0 to 1.
        worst_class: accuracy of the worst class, 0 to 1.
        against_baseline: difference to the arm's own baseline; None for the study's baseline.
        against_reference: difference to the study's reference; None for it, or without one.
        against_base: difference to the arm it was generated from; None without one.
        opening: number of the opening that read it first; None if none did.
        missing: pairs that another arm finished and this one did not, with what became of them.
        notes: stamps of the runs and of the arm.
        targets: the score of each target, where the score is a mean over several; else none.
    """

    name: str
    declared: Declared
    scheme: Scheme
    score: Interval
    log_loss: float | None
    calibration_error: float | None
    worst_class: float | None
    against_baseline: Claim | None
    against_reference: Claim | None
    against_base: Claim | None
    opening: int | None
    budget: Budget
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    targets: tuple[TargetScore, ...]


class Ablation(NamedTuple):
    """The whole answer of a study.

    Attributes:
        basis: what the scores were computed on: ``test``; ``validation`` repetitions while the test split is
            closed; the best trial of the ``search`` while there are no repetitions.
        scheme: what counts as one replicate in the study's baseline.
        tuning: where winners were searched: nested, fixed_holdout or shared; mixed where the arms differ.
        openings: how often the test split was opened.
        stamps: what every table of the study must say, whatever its form.
        arms: in the order in which they read well.
        sentences: one per planned contrast.
        warnings: what a reader must know before believing a number.
        lattices: contributions of teachers and of privileged modalities, where arms differ in these alone.
        harm: which rows each arm turns from right to wrong and back, of those with predictions.
    """

    study: str
    dataset: str
    score_name: str
    baseline: str
    reference: str | None
    margin: float
    basis: Basis
    scheme: Scheme
    tuning: str
    openings: int
    stamps: tuple[str, ...]
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Claim, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    lattices: tuple[Lattice, ...]
    harm: tuple[HarmSet, ...]


def summarise(root: Path) -> Ablation:
    """Return the ablation of the study in ``root``, as far as it has come.

    Raises:
        InputError: there is no study in ``root``.
        StudyError: a record is damaged.
    """
    return summarise_tables(latest(StudyFolder.open(root)))


def summarise_tables(tables: Mapping[str, pa.Table]) -> Ablation:
    """Return the ablation of a study from its tables."""
    return summarise_readings(readings_of(tables))


def summarise_readings(readings: Readings) -> Ablation:
    """Return the ablation of a study from what its tables hold for it."""
    study, openings = readings.study, readings.openings
    judged = {
        "margin": study["margin"],
        "judged": readings.basis == "test" and not readings.is_beside,
        "compare": cache(readings.compare),
    }
    contrasts = planned_claims(_planned(readings), **judged)
    arms = _summaries(readings, contrasts, partial(exploratory_claims, **judged))
    return Ablation(
        study=study["name"],
        dataset=study["dataset"],
        score_name=study["score"],
        baseline=study["baseline"],
        reference=study["reference"],
        margin=study["margin"],
        basis=readings.basis,
        scheme=readings.schemes[study["baseline"]],
        tuning=study["tuning"],
        openings=openings.times,
        stamps=tuple(_stamps(readings)),
        arms=tuple(arms),
        contrasts=tuple(contrasts),
        sentences=tuple(
            sentence(claim, margin=study["margin"]) for claim in contrasts if not readings.is_beside
        ),
        warnings=tuple(_warnings(readings, arms, contrasts)),
        lattices=contributions(readings, [*contrasts, *_shown(arms)]),
        harm=harm_sets(readings),
    )


def _shown(arms: Sequence[ArmSummary]) -> list[Claim]:
    claims = [(arm.against_baseline, arm.against_base, arm.against_reference) for arm in arms]
    return [claim for several in claims for claim in several if claim]


def _planned(readings: Readings) -> list[Question]:
    return [
        Question(
            contrast["arm"],
            contrast["against"],
            contrast["question"],
            readings.openings.before(contrast, readings.declared),
            readings.remarks(contrast["arm"], contrast["against"]),
        )
        for contrast in json.loads(readings.study["contrasts_json"])
    ]


def _stamps(readings: Readings) -> list[str]:
    arms = [arm.name for arm in readings.declared if arm.tuning == "shared"]
    whose = "" if len(arms) == len(readings.declared) else f" for {', '.join(arms)}"
    shared = (
        f"tuning = shared{whose}: winners were searched in fold 0 alone, whose training and validation rows "
        "are test rows of other folds, so these scores are optimistic"
    )
    return [stamp for stamp in (shared if arms else None, readings.openings.stamp()) if stamp]


def _summaries(readings: Readings, contrasts: Sequence[Claim], explore: Explore) -> list[ArmSummary]:
    names = {arm.name for arm in readings.declared}
    asked = {
        arm.name: [(arm.name, other or "") for other in (arm.baseline, readings.study["reference"], arm.base)]
        for arm in readings.declared
    }
    comparable = [
        (name, against)
        for pairs in asked.values()
        for name, against in pairs
        if against in names and against != name
    ]
    claims = _compared(comparable, readings, contrasts, explore)
    return [_summary(readings, arm, *map(claims.get, asked[arm.name])) for arm in readings.declared]


def _compared(
    asked: Sequence[tuple[str, str]], readings: Readings, contrasts: Sequence[Claim], explore: Explore
) -> dict[tuple[str, str], Claim]:
    """Return the one claim on each two arms, either way round: the planned one, or else an exploratory one.

    What was asked of two arms more than once counts once among the exploratory ones.
    """
    claims = _either_way(contrasts)
    rest: dict[frozenset[str], Question] = {}
    for name, against in asked:
        if (name, against) not in claims:
            question = Question(name, against, remarks=readings.remarks(name, against))
            rest.setdefault(frozenset({name, against}), question)
    return claims | _either_way(explore(list(rest.values())))


def _either_way(claims: Sequence[Claim]) -> dict[tuple[str, str], Claim]:
    ways = [*map(turned_round, claims), *claims]
    return {(claim.arm, claim.against): claim for claim in ways}


def _summary(
    readings: Readings,
    arm: Declared,
    against_baseline: Claim | None,
    against_reference: Claim | None,
    against_base: Claim | None,
) -> ArmSummary:
    trials, results = readings.trials.get(arm.name, ()), readings.arms.get(arm.name, Arm({}, None))
    first = readings.openings.first_of(arm.name)
    opening = first if first <= readings.openings.times else None
    return ArmSummary(
        name=arm.name,
        declared=arm,
        scheme=readings.schemes[arm.name],
        score=readings.score(arm.name),
        log_loss=_mean(results.runs, "log_loss"),
        calibration_error=_mean(results.runs, "ace"),
        worst_class=_mean(results.runs, "worst_class_accuracy"),
        against_baseline=against_baseline,
        against_reference=against_reference,
        against_base=against_base,
        opening=opening,
        budget=budget_of(trials, arm.dimensions, readings.study["task"]),
        missing=tuple(readings.missing(arm.name)),
        notes=tuple(_notes(arm, opening, trials)),
        targets=tuple(_target_scores(readings, results.runs)),
    )


def _target_scores(readings: Readings, runs: Mapping[str, Trial]) -> list[TargetScore]:
    if readings.study["task"] != "regression":
        return []
    prefix = f"{readings.study['score']}_"
    names = dict.fromkeys(name for run in runs.values() for name in run["metrics"] if name.startswith(prefix))
    scores = [TargetScore(name.removeprefix(prefix), _mean(runs, name)) for name in names]
    return scores if len(scores) > 1 else []


def _mean(runs: Mapping[str, Trial], metric: str) -> float | None:
    values = [run["metrics"].get(metric) for run in runs.values()]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _notes(arm: Declared, opening: int | None, trials: Sequence[Trial]) -> list[str]:
    stamps = sorted({trial["note"] for trial in trials if trial["phase"] != "search" and trial["note"]})
    notes = [
        f"frozen: knock-out, biased towards {arm.frozen}" if arm.frozen else None,
        f"added in revision {arm.revision}" if arm.revision > 1 else None,
        f"first read at opening {opening}" if opening and opening > 1 else None,
        arm.note,
        *stamps,
    ]
    return [note for note in notes if note]


def _warnings(readings: Readings, arms: Sequence[ArmSummary], contrasts: Sequence[Claim]) -> list[str]:
    warnings, judged = [], readings.basis == "test" and not readings.is_beside
    if readings.is_beside:
        warnings.append(
            f"{readings.study['score']} is not the score the study is about: a difference carries no verdict "
            "and no interval over units, and no mean is marked"
        )
    if readings.basis == "validation":
        warnings.append("validation, test not opened yet: these numbers are optimistic and carry no verdict")
    if readings.basis == "search":
        warnings.append(
            "best trial of each search on validation rows, nothing repeated yet: no comparison holds"
        )
    if judged:
        warnings += [few for few in (too_few(contrasts), too_few_alone(_shown(arms))) if few]
    warnings += [f"{arm.name} lacks the pairs {', '.join(arm.missing)}" for arm in arms if arm.missing]
    warnings += [
        f"{arm.name} is not compared with {arm.declared.baseline}: it was tested on other folds"
        for arm in arms
        if arm.declared.baseline and readings.are_apart(arm.name, arm.declared.baseline)
    ]
    shown = [*contrasts, *(arm.against_baseline for arm in arms if arm.against_baseline)]
    if judged and any(c.seeds.n > 1 and math.isnan(c.crossed.low) for c in shown):
        warnings.append(
            "a difference without its seeds x units interval lacks predictions or compares other rows"
        )
    return warnings
