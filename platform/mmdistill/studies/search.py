"""What a search contradicts: generations too small for a race, grids that do not fit their budget."""

import math
from collections.abc import Mapping

from mmdistill.errors import Problem
from mmdistill.settings import Dimension, Range
from mmdistill.studies.file import PLANNED_LANES, SearchSettings, StudyFile

Spaces = Mapping[str, Mapping[str, Dimension]]


def generations_of(search: SearchSettings) -> list[range]:
    """Return the numbers of the trials of each generation."""
    first = min(search.startup, search.trials)
    starts = [0, *range(first, search.trials, search.generation)]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], search.trials], strict=True) if a < b]


def search_problems(file: StudyFile, epochs: Mapping[str, int], spaces: Spaces, where: str) -> list[Problem]:
    """Return what of the search contradicts itself or its arms: races and grids.

    Args:
        file: the study file.
        epochs: of every arm that is searched, by name.
        spaces: what these arms search, by name.
        where: the study file's path.
    """
    return [*_race_problems(file, epochs, where), *_grid_problems(file.search, spaces, where)]


def _race_problems(file: StudyFile, epochs: Mapping[str, int], where: str) -> list[Problem]:
    race = file.search.racing
    if race is None:
        return []
    problems = []
    lanes = PLANNED_LANES if file.resources.lanes == "auto" else file.resources.lanes
    if min(lanes, max(map(len, generations_of(file.search)))) < 2:
        rule = "a race needs two proposals that train together, but every generation has one"
        if lanes < 2:
            rule = f"a race needs two runs that train together, but resources.lanes is {lanes}"
        mend = "raise `generation` or `resources.lanes`, or remove `racing`"
        problems.append(Problem(f"{where}: search.racing", rule, mend))
    shortest = min(epochs, key=lambda name: epochs[name])
    if race.first >= epochs[shortest]:
        rule = f"a race decides before the last epoch, but {shortest} has {epochs[shortest]} epochs"
        mend = "lower `first` or raise `run.epochs`"
        problems.append(Problem(f"{where}: search.racing.first", f"{rule} (got {race.first})", mend))
    return problems


def _grid_problems(search: SearchSettings, spaces: Spaces, where: str) -> list[Problem]:
    if search.sampler != "grid":
        mend = 'remove it, or set `search.sampler` to "grid"'
        rule = f"`steps` divides an interval for a grid, but the sampler is {search.sampler!r}"
        divided = {path for space in spaces.values() for path, found in space.items() if _steps(found)}
        return [Problem(f"{where}: search.space.{path}.steps", rule, mend) for path in sorted(divided)]
    undivided = {
        path
        for space in spaces.values()
        for path, found in space.items()
        if isinstance(found, Range) and not _steps(found)
    }
    if undivided:
        rule, mend = "a grid needs alternatives", "give `choice`, or `low`, `high` and `steps`, or false"
        return [Problem(f"{where}: search.space.{path}", rule, mend) for path in sorted(undivided)]
    sizes = {name: grid_size(space) for name, space in spaces.items()}
    mend = f"raise it to {max(sizes.values(), default=1)}, the largest grid; a smaller one is then repeated"
    return [
        Problem(
            f"{where}: search.trials",
            f"a part of a grid is no fair search, but the grid of {name} has {size} points "
            f"(got {search.trials})",
            mend,
        )
        for name, size in sizes.items()
        if size > search.trials
    ]


def _steps(dimension: Dimension) -> int | None:
    return dimension.steps if isinstance(dimension, Range) else None


def grid_size(space: Mapping[str, Dimension]) -> int:
    """Return the number of combinations of a grid."""
    return math.prod(len(dimension.grid()) for dimension in space.values())
