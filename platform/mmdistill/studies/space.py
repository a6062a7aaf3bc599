"""What of a run can be searched: only what changes something there."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from mmdistill.errors import Problem
from mmdistill.pipeline.contradictions import dead_fields, greatest
from mmdistill.pipeline.run import RunSettings, canonical, live_ranges
from mmdistill.settings import Choice, Dimension, Range, declared_ranges, edited, flattened
from mmdistill.studies.file import ArmEntry, Space
from mmdistill.terms.base import Task

# What a pair is made of: never proposed, edits of arms can change it.
FIXED = frozenset({"data", "fold", "seed"})


def narrowed_space(
    entry: ArmEntry, run: RunSettings, shared: Space, task: Task, where: str
) -> tuple[dict[str, Dimension], list[Problem]]:
    """Return what an arm searches, by dotted path in alphabetical order, and what is wrong with it.

    Args:
        entry: the arm; its own space goes before the shared one.
        run: its settings.
        shared: the space of the study.
        task: decides which settings matter.
        where: the study file.
    """
    declared = live_ranges(run, task)
    space: dict[str, Dimension] = {
        path: _within(greatest(run), path, found) for path, found in declared.items()
    }
    problems: list[Problem] = []
    for path, asked in (shared | entry.space).items():
        at = f"{where}: arms.{entry.name}.space" if path in entry.space else f"{where}: search.space"
        if not is_live(path, asked, run, task, is_own=path in entry.space):
            continue
        if asked is False:
            space.pop(path, None)
        elif asked is not True:
            space[path] = asked
            problems += _end_problems(path, asked, run, f"{at}.{path}")
        elif path not in declared:
            mend = "give `low` and `high`, or `choice`"
            problems.append(Problem(f"{at}.{path}", "no range is declared for it", mend))
    if not space:
        mend = "search at least learning rate, weight decay or label smoothing"
        problems.append(Problem(f"{where}: arms.{entry.name}", "nothing is left to search in this arm", mend))
    space = dict(sorted(space.items()))
    return space, problems or _pair_problems(space, run, f"{where}: arms.{entry.name}")


def is_live(
    path: str, asked: Dimension | bool, run: RunSettings, task: Task, *, is_own: bool = False
) -> bool:
    """Return whether a setting exists in the run, and some value that is asked for changes something.

    A space of the whole study leaves arms with a single teacher alone: it would turn controls such as
    self-distillation into something else. An arm's own space (``is_own``) may do so.
    """
    if path in declared_ranges(run):
        return path in live_ranges(run, task)
    root, *rest = path.split(".")
    if root == "terms":
        return _is_live_in_term(rest, run)
    if root in FIXED or path not in flattened(run.as_json()):
        return False
    if path == "teachers.pool" and (run.trains_teacher() or (len(run.networks()) < 2 and not is_own)):
        return False
    return isinstance(asked, bool) or any(_changes(run, path, value) for value in ends(asked))


def inherited_paths(
    entry: ArmEntry, run: RunSettings, source: Mapping[str, Dimension], task: Task, at: str
) -> tuple[tuple[str, ...], list[Problem]]:
    """Return what a frozen arm takes from another arm's winner, and what of it the arm cannot be.

    Args:
        entry: the frozen arm; what its own space fixes is not taken.
        run: its settings.
        source: what the other arm searches.
        task: decides which settings matter.
        at: place of the arm in the study file.
    """
    taken = {
        path: found
        for path, found in source.items()
        if path not in entry.space and is_live(path, found, run, task, is_own=True)
    }
    problems = [p for path, found in taken.items() for p in _end_problems(path, found, run, f"{at}.{path}")]
    return tuple(taken), problems or _pair_problems(taken, run, at)


def unused_problems(
    file_space: Space,
    entries: Sequence[ArmEntry],
    runs: Mapping[str, RunSettings],
    task: Task,
    where: str,
) -> list[Problem]:
    """Return the paths that change nothing: in any arm, or in the arm that names them.

    Args:
        file_space: the space of the study.
        entries: the hand-written arms.
        runs: of all arms, by name.
        task: decides which settings matter.
        where: the study file.
    """
    problems = [
        _unused(f"{where}: search.space.{path}", path, "any arm")
        for path, asked in file_space.items()
        if not any(is_live(path, asked, run, task) for run in runs.values())
    ]
    return problems + [
        _unused(f"{where}: arms.{entry.name}.space.{path}", path, "this arm")
        for entry in entries
        for path, asked in entry.space.items()
        if not is_live(path, asked, runs[entry.name], task, is_own=True)
    ]


def _unused(at: str, path: str, scope: str) -> Problem:
    if path.split(".")[0] in FIXED:
        return Problem(at, "this belongs to the pair and cannot be searched", "make it the edit of an arm")
    return Problem(at, f"this changes nothing in {scope}", "remove it or correct its spelling")


def _is_live_in_term(rest: Sequence[str], run: RunSettings) -> bool:
    name, field = (*rest, "", "")[:2]
    active = run.active_terms()
    return name in active and field in set(type(active[name]).model_fields) - dead_fields(run, name)


def _within(limits: Mapping[str, int], path: str, declared: Range) -> Range:
    """Return a declared range that ends where the batch size limits the setting."""
    most = limits.get(path, declared.high)
    if declared.high <= most:
        return declared
    low = max(min(declared.low, most - 1), 1.0)
    return declared.model_copy(update={"low": low, "high": float(max(most, 2))})


def _changes(run: RunSettings, path: str, value: Any) -> bool:
    try:
        changed = RunSettings.model_validate(edited(run.as_json(), {path: value}))
    except ValidationError:
        return True  # wrong, which is said elsewhere
    return canonical(changed).digest != canonical(run).digest


def ends(dimension: Dimension) -> list[Any]:
    """Return every alternative, or both ends of an interval."""
    if isinstance(dimension, Choice):
        return list(dimension.choice)
    ends = [dimension.low, dimension.high]
    return [int(end) for end in ends] if dimension.integer else ends


def _end_problems(path: str, dimension: Dimension, run: RunSettings, at: str) -> Iterator[Problem]:
    # Whole ends would pass, and what a search proposes between them would not.
    is_whole = type(flattened(run.as_json()).get(path)) is int
    if is_whole and isinstance(dimension, Range) and not dimension.integer:
        yield Problem(at, "this setting takes whole numbers only", "add `integer = true`")
        return
    for value in ends(dimension):
        message = refusal(run, {path: value})
        if message:
            yield Problem(at, f"{value!r} is not allowed: {message}", "narrow the space")


def _pair_problems(space: Mapping[str, Dimension], run: RunSettings, at: str) -> list[Problem]:
    """Return the first combination of two values that contradict each other; a search would meet it."""
    choices = {path for path, found in space.items() if isinstance(found, Choice)} | set(greatest(run))
    for first, second in combinations(space, 2):
        if first not in choices or second not in choices:
            continue
        for one in ends(space[first]):
            for other in ends(space[second]):
                message = refusal(run, {first: one, second: other})
                if message:
                    rule = f"{first} = {one!r} is not allowed with {second} = {other!r}: {message}"
                    return [Problem(at, rule, "narrow the space")]
    return []


def refusal(run: RunSettings, edits: Mapping[str, Any]) -> str | None:
    """Return why a run cannot have some values, by dotted path; None if it can."""
    try:
        RunSettings.model_validate(edited(run.as_json(), edits))
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return None
