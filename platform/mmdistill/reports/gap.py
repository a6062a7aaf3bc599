"""How far an arm closes the gap to its teacher, and how far validation flattered it."""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmdistill.reports.evidence import per_replicate
from mmdistill.reports.readings import Readings
from mmdistill.statistics import Interval, ratio_of_means, t_interval

Scores = Mapping[str, float]
"""Score by pair."""


class GapShare(NamedTuple):
    """The share of the distillable gap that an arm closes, all on validation rows.

    The records hold no teacher's score on test rows, so teacher, arm and student alone are all read on the
    validation rows of the confirmed pairs; these chose each one's epoch, for all of them alike.

    Attributes:
        arm: the arm.
        against: the student alone on the same data.
        teacher: the best of the teachers of its confirmed runs, by mean score above the student alone.
        replicate: what ``n`` counts, ``seeds`` or ``folds``.
        gap: teacher minus student alone with its 95 % interval over replicates.
        share: (arm - student alone) / (teacher - student alone), ratio of means with Fieller's 95 % interval;
            1 is the teacher's score, below 0 a harm. None where the teacher's score is no bound, or the gap
            is not known well enough to be divided by.
        reason: why there is no share.
    """

    arm: str
    against: str
    teacher: str
    replicate: str
    gap: Interval
    share: Interval | None
    reason: str | None


class Optimism(NamedTuple):
    """Validation minus test score of an arm's confirmed runs, 95 % interval over replicates.

    Above 0 validation flattered the arm: it chose the settings and the epoch. ``replicate`` is what ``n``
    counts, ``seeds`` or ``folds``.
    """

    arm: str
    replicate: str
    difference: Interval


def gap_shares(readings: Readings, stages: pa.Table) -> tuple[GapShare, ...]:
    """Return the share of the gap of every arm with a teacher whose score is on record.

    The teacher's score bounds what there is to distil only if the teacher beats the student alone: if the
    95 % interval of their difference lies above 0. Where that interval is wider than the difference, a share
    of the difference can be nearly anything.

    Args:
        readings: of the study, with confirmed runs.
        stages: the table of the study.
    """
    teachers = _teacher_scores(readings, stages)
    found = []
    for arm in readings.declared:
        if arm.baseline and not arm.frozen and teachers.get(arm.name):
            share = _gap_share(readings, arm.name, arm.baseline, teachers[arm.name])
            found += [share] if share else []
    return tuple(found)


def _gap_share(
    readings: Readings, name: str, against: str, teachers: Mapping[str, Scores]
) -> GapShare | None:
    ours, alone = _validated(readings, name), _validated(readings, against)
    gaps = _gaps(ours.keys() & alone.keys(), alone, teachers)
    if not gaps:
        return None
    teacher = max(gaps, key=lambda one: float(np.mean(list(gaps[one].values()))))
    scheme, arm = readings.scheme_of_runs(name), readings.arms[name]
    closed_R = per_replicate({pair: ours[pair] - alone[pair] for pair in gaps[teacher]}, arm, scheme)
    gap_R = per_replicate(gaps[teacher], arm, scheme)
    gap = t_interval(gap_R, test_share=scheme.test_share)
    reason = _no_share(gap, teacher, against)
    if reason:
        return GapShare(name, against, teacher, scheme.replicate, gap, None, reason)
    share = ratio_of_means(closed_R, gap_R, test_share=scheme.test_share)
    return GapShare(name, against, teacher, scheme.replicate, gap, share, None)


def _no_share(gap: Interval, teacher: str, against: str) -> str | None:
    """Return why a gap cannot be divided by."""
    if not gap.low > 0:
        return f"{teacher} does not beat {against} by more than its interval, so its score is no bound"
    if gap.high - gap.low > gap.mean:
        return f"how far {teacher} beats {against} is not clear: the interval is wider than the gap itself"
    return None


def _gaps(shared: Set[str], alone: Scores, teachers: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return teacher minus student alone on the pairs that the runs share, of teachers with at least two.

    A search scores teachers on pairs of its own, among them teachers that no confirmed run has.
    """
    gaps = {
        teacher: {pair: bound[pair] - alone[pair] for pair in sorted(shared & bound.keys())}
        for teacher, bound in teachers.items()
    }
    return {teacher: gap for teacher, gap in gaps.items() if len(gap) > 1}


def _validated(readings: Readings, arm: str) -> dict[str, float]:
    """Return the validation score of an arm's confirmed runs whose reading counts in the table."""
    runs = readings.arms[arm].runs if arm in readings.arms else {}
    return _metric(readings, arm, readings.study["score"], runs)


def _metric(readings: Readings, arm: str, metric: str, runs: Mapping[str, Any]) -> dict[str, float]:
    found = {
        trial["pair_id"]: (trial["metrics"] or {}).get(metric)
        for trial in readings.trials.get(arm, ())
        if trial["phase"] == "confirm" and trial["status"] == "complete" and trial["pair_id"] in runs
    }
    return {pair: value for pair, value in found.items() if value is not None and np.isfinite(value)}


def _teacher_scores(readings: Readings, stages: pa.Table) -> dict[str, dict[str, dict[str, float]]]:
    """Return the validation score by arm, teacher and pair, of frozen and of live teachers."""
    score, wanted = readings.study["score"], ["stage", "stage_key", "arm", "pair_id", "metrics", "upstream"]
    rows = stages.select(wanted).to_pylist()
    outputs = {row["stage_key"]: row["metrics"] or {} for row in rows if row["stage"] == "teacher_outputs"}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["stage"] == "student" and row["arm"]:
            for key in row["upstream"] or ():
                for teacher, value in _named(outputs.get(key, {}), score).items():
                    found.setdefault(row["arm"], {}).setdefault(teacher, {})[row["pair_id"]] = value
    for arm in readings.arms:
        live = _metric(readings, arm, f"teacher_{score}", readings.arms[arm].runs)
        if live:
            found.setdefault(arm, {})["the live teacher"] = live
    return found


def _named(metrics: Mapping[str, float | None], score: str) -> dict[str, float]:
    """Return the score by teacher from metrics called ``<teacher>_<score>``."""
    ending = f"_{score}"
    return {
        name.removesuffix(ending): value
        for name, value in metrics.items()
        if name.endswith(ending) and value is not None
    }


def optimism_gaps(readings: Readings) -> tuple[Optimism, ...]:
    """Return validation minus test of every arm that was confirmed and tested; none before the opening."""
    if readings.basis != "test":
        return ()
    return tuple(_optimism(readings, arm.name) for arm in readings.declared if _validated(readings, arm.name))


def _optimism(readings: Readings, name: str) -> Optimism:
    score, scheme, arm = readings.study["score"], readings.scheme_of_runs(name), readings.arms[name]
    differences = {
        pair: value - arm.runs[pair]["metrics"][score] for pair, value in _validated(readings, name).items()
    }
    interval = t_interval(per_replicate(differences, arm, scheme), test_share=scheme.test_share)
    return Optimism(name, scheme.replicate, interval)
