"""From a study file to the runs of its arms, hand-written and generated, with every problem on the way."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mmdistill.data.opening import DataSettings, check_data, training_rows
from mmdistill.errors import ConfigError, InputError, Problem, UnknownNameError
from mmdistill.pipeline.recipe import recipe, recipes
from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import unknown_name
from mmdistill.settings import edited, flattened, merged, problems_of
from mmdistill.studies.designs import DESIGNS, Base, Design
from mmdistill.studies.file import ArmEntry, StudyFile, broken_name_rule, known_keys
from mmdistill.studies.space import ends
from mmdistill.terms import TERMS

# Drawn for every pair by the protocol.
_DRAWN = {"seed": "set `seed` at the top of the file", "fold": "set `count` in run.data.folds"}


def entries_of(file: StudyFile, where: str) -> tuple[list[ArmEntry], list[Problem]]:
    """Return the arms of a file, of their controls and of its designs, and what is wrong with them.

    A design may start from what an earlier one generated.
    """
    entries = {arm.name: arm for arm in file.arms}
    problems: list[Problem] = []
    for place, tree in _designs(file, where):
        try:
            generated = _generated(tree, entries, file, place)
        except ConfigError as error:
            problems += error.problems
            continue
        for arm in generated:
            wrong = [*_name_problems(arm, entries, place), *_part_problems(arm, file, place)]
            problems += wrong
            if not wrong:
                entries.setdefault(arm.name, arm)
    return list(entries.values()), problems


def _designs(file: StudyFile, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return every design with its place; the controls of an arm are a design with a key of their own."""
    for arm in file.arms:
        if arm.controls:
            tree = {"kind": "controls", "base": arm.name, "which": arm.controls}
            yield f"{where}: arms.{arm.name}.controls", tree
    for number, tree in enumerate(file.designs):
        yield f"{where}: designs.{number}", tree


def _generated(
    tree: Mapping[str, Any], entries: Mapping[str, ArmEntry], file: StudyFile, place: str
) -> list[ArmEntry]:
    missing = [
        Problem(f"{place}: {key}", "this key is required", "add it")
        for key in ("kind", "base")
        if key not in tree and (key != "base" or "bases" not in tree)
    ]
    if missing:
        raise ConfigError(missing)
    kind = DESIGNS.get_or_explain(str(tree["kind"]), f"{place}.kind")
    try:
        design = kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_of(error, place, kind)) from error
    key = "base" if "base" in tree else "bases"
    problems = [p for name in design.bases for p in _base_problems(name, entries, f"{place}.{key}")]
    if problems:
        raise ConfigError(problems)
    return [arm for name in design.bases for arm in _arms_of(design, entries[name], file, place)]


def _base_problems(name: str, entries: Mapping[str, ArmEntry], at: str) -> Iterator[Problem]:
    if name not in entries:
        yield unknown_name("arm", name, at, list(entries))
    elif entries[name].frozen is not None:
        yield Problem(at, f"{name!r} is frozen, which is a reading of another arm", "name that arm")


def _arms_of(design: Design, entry: ArmEntry, file: StudyFile, place: str) -> list[ArmEntry]:
    try:
        run = _resolved(entry, file)
    except ConfigError:
        return []  # said with the arm itself
    try:
        return design.arms(Base(entry, run))
    except ValueError as error:
        raise ConfigError([Problem(place, str(error), "correct the design or its base")]) from error


def _part_problems(arm: ArmEntry, file: StudyFile, place: str) -> Iterator[Problem]:
    """Return why a generated arm does not hold together, e.g. because another part needs what is gone."""
    try:
        _resolved(arm, file)
    except ConfigError as error:
        for problem in error.problems:
            told = f"{problem.where}: {problem.rule}" if problem.where else problem.rule
            mend = problem.mend if problem.where else "leave this arm out, or what needs the part too"
            yield Problem(place, f"its arm {arm.name!r} ({arm.change}) does not hold together: {told}", mend)


def _name_problems(arm: ArmEntry, entries: Mapping[str, ArmEntry], place: str) -> Iterator[Problem]:
    rule = broken_name_rule(arm.name)
    if rule is not None:
        yield Problem(place, f"{rule} (got {arm.name!r})", "change the names it is made of")
    same = next((name for name in entries if name.casefold() == arm.name.casefold()), None)
    if same is not None and entries[same] != arm:
        yield Problem(place, f"it generates an arm {arm.name!r}, but there is another one", "rename that arm")


def runs_of(
    entries: Sequence[ArmEntry], file: StudyFile, where: str
) -> tuple[dict[str, RunSettings], list[Problem]]:
    """Return the run of every arm that has a valid one, and the problems of the others."""
    runs: dict[str, RunSettings] = {}
    problems: list[Problem] = []
    for entry in entries:
        try:
            runs[entry.name] = _run(entry, file, where)
        except ConfigError as error:
            problems += error.problems
    wrong = _data_problems(runs, entries, where)
    return runs, [*problems, *(wrong or _batch_problems(runs, entries, file, where))]


def _tree(entry: ArmEntry, file: StudyFile) -> dict[str, Any]:
    known = recipes().get(entry.recipe)
    return edited(merged(file.run, known.run if known else {}), entry.edits)


def _run(entry: ArmEntry, file: StudyFile, where: str) -> RunSettings:
    try:
        return _resolved(entry, file)
    except UnknownNameError as error:
        raise ConfigError(
            [p._replace(where=f"{where}: arms.{entry.name}.{p.where}") for p in error.problems]
        ) from error
    except ConfigError as error:
        raise ConfigError([_placed(problem, entry, file, where) for problem in error.problems]) from error


def _resolved(entry: ArmEntry, file: StudyFile) -> RunSettings:
    """Return the run of an arm.

    Raises:
        ConfigError: with every problem at its path in the run, or at none for parts that contradict others.
    """
    recipe(entry.recipe, "recipe")
    tree = _tree(entry, file)
    problems = [
        Problem(key, "this is drawn for every pair", mend) for key, mend in _DRAWN.items() if key in tree
    ]
    problems += _term_problems(tree)
    try:
        run = RunSettings.model_validate(tree)
    except ValidationError as error:
        problems += _problems_by_path(error)
    if problems:
        raise ConfigError(problems)
    return run


def _term_problems(tree: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with each term, and take these terms out, so that the rest can be judged."""
    terms = tree.get("terms")
    problems: list[Problem] = []
    for name, settings in list(terms.items()) if isinstance(terms, dict) else ():
        if name not in TERMS:
            problems.append(unknown_name("term", name, f"terms.{name}", list(TERMS)))
            del tree["terms"][name]
            continue
        try:
            TERMS[name].settings_type.model_validate(settings)
        except ValidationError as error:
            found = problems_of(error, f"terms.{name}", TERMS[name].settings_type)
            problems += [
                p._replace(where=p.where.replace(": ", ".").removesuffix(".(whole file)")) for p in found
            ]
            del tree["terms"][name]
    return problems


def _problems_by_path(error: ValidationError) -> Iterator[Problem]:
    found = problems_of(error, "", RunSettings, known_keys())
    for problem, detail in zip(found, error.errors(), strict=True):
        if detail["loc"]:
            yield problem._replace(where=problem.where.removeprefix(": "))
        else:
            # Parts that contradict each other; pydantic tells all of them in one message.
            message = detail["msg"].removeprefix("Value error, ")
            for rule in message.split("; "):
                yield Problem("", rule, "change one of the two")


def _placed(problem: Problem, entry: ArmEntry, file: StudyFile, where: str) -> Problem:
    place = _place(problem.where, entry, file, where)
    # The paths of edits begin inside the run.
    mend = problem.mend.replace("`run.", "`") if ".edits." in place else problem.mend
    return Problem(place, problem.rule, mend)


def _place(path: str, entry: ArmEntry, file: StudyFile, where: str) -> str:
    """Return who wrote a path: the arm's edits, its recipe, or else the run that all arms share."""
    if not path:
        return f"{where}: arms.{entry.name}"
    if _touches(path, entry.edits):
        return f"{where}: arms.{entry.name}.edits.{path}"
    if _touches(path, flattened(recipes()[entry.recipe].run)) and not _touches(path, flattened(file.run)):
        return f"{where}: arms.{entry.name}.run.{path}"
    # Said once, not once per arm.
    return f"{where}: run.{path}"


def _touches(path: str, keys: Collection[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.") for key in keys)


def _data_problems(runs: Mapping[str, RunSettings], entries: Sequence[ArmEntry], where: str) -> list[Problem]:
    problems: list[Problem] = []
    kinds: dict[str, tuple[DataSettings, str]] = {}
    edits = {entry.name: entry.edits for entry in entries}
    for name, run in runs.items():
        first = next(iter(runs.values())).data
        if (run.data.dataset, run.data.options) != (first.dataset, first.options):
            rule = "arms are compared on one data set"
            problems.append(Problem(f"{where}: arms.{name}", rule, "make this arm a study of its own"))
        own = _touches("data", edits[name])
        at = f"{where}: arms.{name}.edits.data" if own else f"{where}: run.data"
        kinds.setdefault(run.data.digest, (run.data, at))
    for settings, at in kinds.values():
        try:
            problems += check_data(settings, at)
        except InputError as error:
            problems += error.problems
    return problems


def _batch_problems(
    runs: Mapping[str, RunSettings], entries: Sequence[ArmEntry], file: StudyFile, where: str
) -> Iterator[Problem]:
    """Return whose students draw batches that their training rows cannot fill; the data must be sound."""
    kinds = {run.data.digest: run.data for run in runs.values()}
    rows = {name: training_rows(data) for name, data in kinds.items()}
    for entry in entries:
        if entry.name not in runs:
            continue
        run = runs[entry.name]
        most = rows[run.data.digest]
        for at, size in _batch_sizes(run, entry, file, where):
            if size > most:
                rule = f"must be at most the number of training rows, {most}, but is {size}"
                yield Problem(at, rule, "use a smaller batch")


def _batch_sizes(run: RunSettings, entry: ArmEntry, file: StudyFile, where: str) -> Iterator[tuple[str, int]]:
    """Return the sizes of an arm's batches, those it searches too, each with its place."""
    yield _place("batch_size", entry, file, where), run.batch_size
    searched = {**file.search.space, **entry.space}.get("batch_size", False)
    if not isinstance(searched, bool):
        place = f"arms.{entry.name}.space" if "batch_size" in entry.space else "search.space"
        # What is no whole number is refused with the space.
        sizes = [size for size in ends(searched) if type(size) is int]
        yield f"{where}: {place}.batch_size", max(sizes, default=0)
