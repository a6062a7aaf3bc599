"""How many runs and orders each arm of a study has: counted here, and nowhere else."""

from collections.abc import Sequence
from typing import NamedTuple

from mmdistill.studies.search import generations_of
from mmdistill.studies.study import Arm, Study


class Planned(NamedTuple):
    """What one arm has by phase, when no run fails and no race stops one.

    Attributes:
        runs: lanes.
        orders: orders with lanes; shared stages come on top.
    """

    runs: dict[str, int]
    orders: dict[str, int]


def planned(study: Study, blocks: Sequence[int] | None = None) -> dict[str, Planned]:
    """Return what every arm of a study has, by name.

    Args:
        study: the study.
        blocks: confirmation pairs per fold that each revision added; all at once by default.
    """
    pairs = blocks or [study.file.confirm.pairs]
    return {arm.name: _planned(arm, study, pairs) for arm in study.arms}


def _planned(arm: Arm, study: Study, blocks: Sequence[int]) -> Planned:
    search, lanes, folds = study.file.search, study.lanes, arm.run.data.folds
    searched = 0 if arm.frozen else len(folds.search_folds)
    again = min(search.top, search.trials) * search.seeds
    generations = sum(-(-len(generation) // lanes) for generation in generations_of(search))
    confirmed = folds.fold_count * sum(-(-block // lanes) for block in blocks)
    runs = {"search": search.trials * searched, "validate": again * searched}
    orders = {"search": generations * searched, "validate": -(-again // lanes) * searched}
    pairs = sum(blocks) * folds.fold_count
    return Planned(
        runs | {"confirm": pairs, "test": pairs}, orders | {"confirm": confirmed, "test": confirmed}
    )
