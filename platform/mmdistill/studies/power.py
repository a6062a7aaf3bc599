"""What a planned design can detect, from the spread that earlier studies met."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdistill.data.opening import DataSettings, open_fold
from mmdistill.data.samples import has_label
from mmdistill.few_pairs import too_few, too_few_alone
from mmdistill.settings import digest
from mmdistill.statistics import ALPHA, detectable_difference
from mmdistill.studies.study import Arm, Study

POWER = 0.8
# A spread of fewer differences says next to nothing.
FEWEST = 4


class Power(NamedTuple):
    """The smallest difference a design finds between arms that share their folds.

    Attributes:
        arms: their names.
        replicate: what counts as one difference: ``seeds``, ``subjects`` or ``folds``.
        n: differences there will be.
        family: planned contrasts, which share .05 (Holm); 1 where none is planned.
        level: of the first of them.
        in_sd: detectable difference with power .8, in sd of the paired differences; None if never.
        spread: sd of the paired differences in units of the score, from earlier studies; None without any.
        source: which studies the spread is from.
        difference: detectable difference in units of the score.
        refusal: why no significance can be promised at all.
        unplanned: comparisons in the whole table that no contrast plans.
        caution: why one of them alone cannot be significant.
    """

    arms: tuple[str, ...]
    replicate: Literal["seeds", "subjects", "folds"]
    n: int
    family: int
    level: float
    in_sd: float | None
    spread: float | None
    source: str | None
    difference: float | None
    refusal: str | None
    unplanned: int
    caution: str | None


def powers_of(study: Study, results: Path) -> tuple[Power, ...]:
    """Return what the planned pairs can detect: once for all arms that share their folds.

    Args:
        study: the study.
        results: folder of earlier studies, this one's own among them once it has tested rows.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in study.arms:
        data = arm.run.data
        groups.setdefault(digest([data.dataset, data.options, data.folds.identity]), []).append(arm)
    return tuple(_power(study, arms, results) for arms in groups.values())


def _power(study: Study, arms: Sequence[Arm], results: Path) -> Power:
    folds = arms[0].run.data.fold_count
    replicate, n, test_share = _replicate(study, arms[0].run.data)
    family = max(1, len(study.file.contrasts))
    refusal = None if replicate == "folds" else too_few(n, family)
    size = detectable_difference(n, level=ALPHA / family, power=POWER, test_share=test_share)
    in_sd = size if np.isfinite(size) and refusal is None else None
    # The rows of earlier trials tell of seeds and folds, of subjects only where each is a fold.
    is_told = replicate != "subjects" or n == folds
    spread, source = earlier_spread(study, arms, results) if is_told else (None, None)
    known = None if in_sd is None or spread is None else in_sd * spread
    names = tuple(arm.name for arm in arms)
    unplanned = len(_unplanned(study))
    caution = None if replicate == "folds" else too_few_alone(n, unplanned)
    return Power(
        arms=names,
        replicate=replicate,
        n=n,
        family=family,
        level=ALPHA / family,
        in_sd=in_sd,
        spread=spread,
        source=source,
        difference=known,
        refusal=refusal,
        unplanned=unplanned,
        caution=caution,
    )


def _unplanned(study: Study) -> set[frozenset[str]]:
    """Return each two arms that the report is going to compare though no contrast plans it."""
    names = {arm.name for arm in study.arms}
    asked = {
        frozenset({arm.name, other})
        for arm in study.arms
        for other in (arm.baseline, study.file.reference, arm.base or arm.frozen)
        if other in names and other != arm.name
    }
    return asked - {frozenset({contrast.arm, contrast.against}) for contrast in study.file.contrasts}


def _replicate(study: Study, data: DataSettings) -> tuple[Literal["seeds", "subjects", "folds"], int, float]:
    """Return what the report is going to count as one difference, their number, and its test share."""
    folds = data.fold_count
    if folds < 2:
        return "seeds", study.file.confirm.pairs, 0.0
    rows, groups = _tested(data)
    if groups == folds or (groups < rows and study.score == "accuracy"):
        return "subjects", groups, 0.0
    return "folds", folds, 1 / (folds - 1) if data.folds.has_holdout else folds / (folds - 1) ** 2


def _tested(data: DataSettings) -> tuple[int, int]:
    """Return how many rows, and how many groups, some fold tests; no test row is opened for it."""
    # What the first fold tests, the second one learns from.
    opened = [open_fold(data, fold) for fold in (0, 1)]
    parts = [fold.train for fold in opened]
    parts += [] if data.folds.has_holdout else [fold.validation for fold in opened]
    known = [has_label(part.labels) for part in parts]
    rows = {row for part, mask in zip(parts, known, strict=True) for row in part.rows[mask].tolist()}
    groups = {group for part, mask in zip(parts, known, strict=True) for group in part.groups[mask].tolist()}
    return len(rows), len(groups)


def earlier_spread(study: Study, arms: Sequence[Arm], results: Path) -> tuple[float | None, str | None]:
    """Return the sd of paired differences on this data set, and where it is from.

    The root mean square over the contrasts, planned or against the baseline, of all studies of this data set
    with the student modalities and the label fraction of one of some arms, in folds if these are; from test
    rows. What this study itself has tested so far counts too.
    """
    variances, sources = [], []
    for path in sorted(results.glob("*/compact/trials.parquet")):
        found = _variances(path, study, arms)
        variances += found
        sources += [path.parents[1].name] if found else []
    if not variances:
        return None, None
    return float(np.sqrt(np.mean(variances))), ", ".join(sources)


def _variances(path: Path, study: Study, arms: Sequence[Arm]) -> list[float]:
    try:
        row = pq.read_table(path.with_name("studies.parquet")).to_pylist()[-1]
        columns = ["arm", "phase", "fold", "seed_index", "status", "metrics", "config_json", "dataset"]
        trials = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException, ValueError, IndexError):
        return []
    known = [_replicated(arm.run.data.as_json()) for arm in arms]
    rows = [
        trial
        for trial in trials
        if (trial["phase"], trial["status"], trial["dataset"]) == ("test", "complete", study.dataset)
        and _replicated(json.loads(trial["config_json"])["data"]) in known
    ]
    if row["score"] != study.score:
        return []
    contrasts = [(one["arm"], one["against"]) for one in json.loads(row["contrasts_json"])]
    pairs = contrasts or [(arm, row["baseline"]) for arm in {trial["arm"] for trial in rows}]
    differences = [_differences(rows, arm, against, study.score) for arm, against in pairs if arm != against]
    return [float(np.var(found, ddof=1)) for found in differences if len(found) >= FEWEST]


def _replicated(data: Mapping[str, Any]) -> list[Any]:
    """Return what settings of data share where spreads agree: student, labels, whether there are folds."""
    is_folded = data["folds"]["scheme"] != "official"
    return [data["student"], data["options"], data["label_fraction"], is_folded]


def _differences(rows: Sequence[Mapping[str, Any]], arm: str, against: str, score: str) -> list[float]:
    scores: dict[str, dict[tuple[int, int], float]] = {arm: {}, against: {}}
    for row in rows:
        value = (row["metrics"] or {}).get(score)
        if row["arm"] in scores and value is not None:
            scores[row["arm"]][row["fold"], row["seed_index"]] = value
    shared = sorted(scores[arm].keys() & scores[against].keys())
    if len({fold for fold, _ in shared}) < 2:
        return [scores[arm][pair] - scores[against][pair] for pair in shared]
    by_fold: dict[int, list[float]] = {}
    for pair in shared:
        by_fold.setdefault(pair[0], []).append(scores[arm][pair] - scores[against][pair])
    return [float(np.mean(values)) for values in by_fold.values()]
