"""Which hyperparameters mattered in a search, by three methods that answer three questions.

The only module of the reports that knows Optuna, and only while it computes.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from mmdistill.records.criterion import CRITERIA
from mmdistill.records.rows import TrialRow
from mmdistill.records.study import StudyFolder
from mmdistill.settings import Choice, Dimension, Range

Method = Literal["fanova", "mdi", "ped-anova"]
Point = Mapping[str, Any]
"""Searched values by dotted path."""

ANSWERS: dict[Method, str] = {
    "fanova": (
        "fANOVA (Hutter et al., 2014): the share of the variance of the validation loss over the whole "
        "search space that each hyperparameter explains alone; what is missing to 1 are interactions"
    ),
    "mdi": (
        "MDI, mean decrease in impurity (Breiman, 2001): how much a forest gains by splitting on each "
        "hyperparameter; sums to 1, interactions are spread over those that take part, and many-valued "
        "hyperparameters are favoured"
    ),
    "ped-anova": (
        "PED-ANOVA (Watanabe et al., 2023): how far each hyperparameter tells the best 10 % of the trials "
        "from all; sums to 1, and is no share of the variance"
    ),
}
# A thousand trials take fANOVA more than a minute; its shares are steady long before.
FANOVA_TRIALS = 256
PER_DIMENSION = 10
_SPACE_FILLING = ("random", "qmc", "halton")


class Share(NamedTuple):
    """The importance of one hyperparameter, 0 to 1."""

    parameter: str
    share: float


class Importance(NamedTuple):
    """What one method says of the search of one arm; results of two methods are never to be mixed.

    Attributes:
        arm: the arm.
        method: which question was asked, see ``ANSWERS``.
        shares: largest first; empty where there is no answer.
        trials: complete trials it was computed from.
        cautions: why to doubt it.
        reason: why there is no answer.
    """

    arm: str
    method: Method
    shares: tuple[Share, ...]
    trials: int
    cautions: tuple[str, ...]
    reason: str | None


class Search(NamedTuple):
    """The search of one arm.

    Attributes:
        arm: the arm.
        space: its dimensions by dotted path.
        trials: complete trials in the order of their proposal: parameters and validation loss, from which
            the mean of its fold is taken where each fold has a search of its own.
        sampler: what proposed them.
        startup: how many of each search were space-filling whatever the sampler.
        searches: how many searches there are, one per tuned fold.
    """

    arm: str
    space: Mapping[str, Dimension]
    trials: Sequence[tuple[Point, float]]
    sampler: str
    startup: int
    searches: int


def searches_of(folder: StudyFolder) -> list[Search]:
    """Return the search of every arm that has one, in the order of the study."""
    rows: dict[str, list[TrialRow]] = {}
    for final in folder.finals():
        for row in final.trials:
            if row.phase == "search":
                rows.setdefault(row.arm, []).append(row)
    return [_search(folder, arm, rows[arm]) for arm in folder.resolved["order"] if arm in rows]


def _search(folder: StudyFolder, arm: str, rows: Sequence[TrialRow]) -> Search:
    settings, criterion = folder.resolved["search"], CRITERIA[folder.row.task]
    space = folder.resolved["arms"][arm]["space"]
    by_fold: dict[int, list[float]] = {}
    found = []
    for row in sorted(rows, key=lambda row: (row.number or 0, row.fold)):
        loss = criterion.in_metrics(row.metrics) if row.status == "complete" else None
        if loss is not None:
            by_fold.setdefault(row.fold, []).append(loss)
            found.append((row.fold, row.parameters, loss))
    means = {fold: float(np.mean(losses)) for fold, losses in by_fold.items()}
    return Search(
        arm=arm,
        space={path: _dimension(stated) for path, stated in space.items()},
        trials=[(parameters, loss - means[fold]) for fold, parameters, loss in found],
        sampler=settings["sampler"],
        startup=settings["startup"],
        searches=len({row.fold for row in rows}),
    )


def _dimension(stated: Mapping[str, Any]) -> Dimension:
    return Choice(**stated) if "choice" in stated else Range(**stated)


def importance(search: Search, method: Method, *, seed: int = 0) -> Importance:
    """Return the importance of every hyperparameter of one search.

    Args:
        search: of one arm.
        method: the question, see ``ANSWERS``.
        seed: of the forests.
    """
    reason = _no_answer(search)
    used = search.trials[:FANOVA_TRIALS] if method == "fanova" else search.trials
    if reason:
        return Importance(search.arm, method, (), len(used), (), reason)
    shares = _computed(search.space, used, method, seed)
    ordered = sorted((Share(path, share) for path, share in shares.items()), key=lambda one: -one.share)
    cautions = tuple(_cautions(search, method, len(used)))
    return Importance(search.arm, method, tuple(ordered), len(used), cautions, None)


def _no_answer(search: Search) -> str | None:
    dimensions, trials = len(search.space), len(search.trials)
    if dimensions < 2:
        return f"{dimensions} hyperparameter was searched, and a comparison needs 2"
    if trials < 2 * dimensions:
        return f"{trials} complete trials are too few for {dimensions} hyperparameters (2 for each at least)"
    losses = [loss for _, loss in search.trials]
    if max(losses) - min(losses) <= 1e-12 * max(map(abs, losses)):
        return "every trial has the same loss"
    return None


def _cautions(search: Search, method: Method, used: int) -> list[str]:
    found, dimensions = [], len(search.space)
    if used < PER_DIMENSION * dimensions:
        found.append(f"{used} trials for {dimensions} hyperparameters are few: the order may be chance")
    if used < len(search.trials):
        found.append(f"the first {used} of {len(search.trials)} trials were used, to end in time")
    if search.sampler == "grid":
        found.append("the trials are a grid, which an analysis of variance would answer better")
    elif search.sampler not in _SPACE_FILLING and used > search.startup * search.searches:
        found.append(
            f"the sampler {search.sampler} proposed all but the first {search.startup} trials of a search "
            "where earlier ones were good, so the trials do not fill the space"
        )
    if method == "ped-anova" and used < 100:
        found.append(f"the best 10 % of {used} trials are {math.ceil(used / 10)}")
    return found


def _computed(
    space: Mapping[str, Dimension], trials: Sequence[tuple[Point, float]], method: Method, seed: int
) -> dict[str, float]:
    import optuna
    from optuna import importance as evaluators

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(_trials(space, trials))
    evaluator = {
        "fanova": partial(evaluators.FanovaImportanceEvaluator, seed=seed),
        "mdi": partial(evaluators.MeanDecreaseImpurityImportanceEvaluator, seed=seed),
        "ped-anova": evaluators.PedAnovaImportanceEvaluator,
    }[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # fANOVA keeps its scale, so that interactions show as what is missing to 1.
        found = evaluators.get_param_importances(study, evaluator=evaluator(), normalize=method != "fanova")
    return {path: float(found.get(path, 0.0)) for path in space}


def _trials(space: Mapping[str, Dimension], trials: Sequence[tuple[Point, float]]) -> list[Any]:
    """Return the trials as Optuna's, numbers as positions in [0, 1], alternatives by their number."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    distributions = {
        path: CategoricalDistribution(range(len(found.choice)))
        if isinstance(found, Choice)
        else FloatDistribution(0.0, 1.0)
        for path, found in space.items()
    }
    return [
        create_trial(
            params={path: _place(point[path], found) for path, found in space.items()},
            distributions=distributions,
            value=loss,
        )
        for point, loss in trials
    ]


def _place(value: Any, dimension: Dimension) -> float | int:
    """Return the number of an alternative, or where in [0, 1] a number lies as the search saw it."""
    if isinstance(dimension, Choice):
        return [json.dumps(option) for option in dimension.choice].index(json.dumps(value))
    return min(max(dimension.position(value), 0.0), 1.0)
