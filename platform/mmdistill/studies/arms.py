"""From a study file to the runs of its arms, hand-written and generated, with every problem on the way."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mmdistill.data.opening import DataSettings, check_data
from mmdistill.errors import ConfigError, InputError, Problem
from mmdistill.pipeline.recipe import recipes
from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import unknown_name
from mmdistill.settings import edited, flattened, merged, problems_of
from mmdistill.studies.designs import DESIGNS
from mmdistill.studies.file import NAME, NAME_RULE, ArmEntry, StudyFile
from mmdistill.terms import TERMS

# Drawn for every pair by the protocol.
_DRAWN = {"seed": "set `seed` at the top of the file", "fold": "set `count` in run.data.folds"}


def entries_of(file: StudyFile, where: str) -> tuple[list[ArmEntry], list[Problem]]:
    """Return the arms of a file and of its designs, in the file's order, and what is wrong with them."""
    entries = {arm.name: arm for arm in file.arms}
    problems: list[Problem] = []
    for number, tree in enumerate(file.designs):
        place = f"{where}: designs.{number}"
        try:
            generated = _generated(tree, entries, file, place)
        except ConfigError as error:
            problems += error.problems
            continue
        for arm in generated:
            problem = _name_problem(arm, entries, place)
            problems += [problem] if problem else []
            entries.setdefault(arm.name, arm)
    return list(entries.values()), problems


def _generated(
    tree: Mapping[str, Any], entries: Mapping[str, ArmEntry], file: StudyFile, place: str
) -> list[ArmEntry]:
    missing = [
        Problem(f"{place}: {key}", "this key is required", "add it")
        for key in ("kind", "base")
        if key not in tree
    ]
    if missing:
        raise ConfigError(missing)
    kind, base = str(tree["kind"]), str(tree["base"])
    design = DESIGNS.get_or_explain(kind, f"{place}.kind")
    if base not in entries:
        raise ConfigError([unknown_name("arm", base, f"{place}.base", list(entries))])
    privileged = _privileged(entries[base], file)
    if privileged is None:
        return []
    try:
        return design.model_validate(tree).arms(entries[base], privileged)
    except ValidationError as error:
        raise ConfigError(problems_of(error, place)) from error
    except ValueError as error:
        raise ConfigError([Problem(place, str(error), "correct the design or its base")]) from error


def _privileged(entry: ArmEntry, file: StudyFile) -> list[str] | None:
    """Return the privileged modalities of an arm; None if its data are wrong, which is said with its run."""
    try:
        return list(DataSettings.model_validate(_tree(entry, file).get("data")).privileged)
    except (ConfigError, ValidationError):
        return None


def _name_problem(arm: ArmEntry, entries: Mapping[str, ArmEntry], place: str) -> Problem | None:
    if not NAME.fullmatch(arm.name):
        return Problem(place, f"{NAME_RULE} (got {arm.name!r})", "shorten the names it is made of")
    same = next((name for name in entries if name.casefold() == arm.name.casefold()), None)
    if same is not None and entries[same] != arm:
        return Problem(
            place, f"it generates an arm {arm.name!r}, but there is another one", "rename that arm"
        )
    return None


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
    return runs, problems + _data_problems(runs, where)


def _tree(entry: ArmEntry, file: StudyFile) -> dict[str, Any]:
    known = recipes().get(entry.recipe)
    return edited(merged(file.run, known.run if known else {}), entry.edits)


def _run(entry: ArmEntry, file: StudyFile, where: str) -> RunSettings:
    arm = f"{where}: arms.{entry.name}"
    if entry.recipe not in recipes():
        raise ConfigError([unknown_name("recipe", entry.recipe, f"{arm}.recipe", list(recipes()))])
    try:
        tree = _tree(entry, file)
    except ConfigError as error:
        raise ConfigError([p._replace(where=f"{arm}.edits.{p.where}") for p in error.problems]) from error
    problems = [
        Problem(key, "this is drawn for every pair", mend) for key, mend in _DRAWN.items() if key in tree
    ]
    problems += _term_problems(tree)
    try:
        run = RunSettings.model_validate(tree)
    except ValidationError as error:
        problems += _problems_by_path(error)
    if problems:
        raise ConfigError([p._replace(where=_place(p.where, entry, file, where)) for p in problems])
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
            found = problems_of(error, f"terms.{name}")
            problems += [
                p._replace(where=p.where.replace(": ", ".").removesuffix(".(whole file)")) for p in found
            ]
            del tree["terms"][name]
    return problems


def _problems_by_path(error: ValidationError) -> Iterator[Problem]:
    for problem, detail in zip(problems_of(error, ""), error.errors(), strict=True):
        if detail["loc"]:
            yield problem._replace(where=problem.where.removeprefix(": "))
        else:
            # Parts that contradict each other; pydantic tells all of them in one message.
            message = detail["msg"].removeprefix("Value error, ")
            for rule in message.split("; "):
                yield Problem("", rule, "change one of the two")


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


def _data_problems(runs: Mapping[str, RunSettings], where: str) -> list[Problem]:
    problems: list[Problem] = []
    kinds: dict[str, DataSettings] = {}
    for name, run in runs.items():
        first = next(iter(runs.values())).data
        if (run.data.dataset, run.data.options, run.data.folds) != (
            first.dataset,
            first.options,
            first.folds,
        ):
            rule = "arms are compared on one data set with one division into folds"
            problems.append(Problem(f"{where}: arms.{name}", rule, "make this arm a study of its own"))
        kinds[run.data.digest] = run.data
    for settings in kinds.values():
        try:
            problems += check_data(settings, f"{where}: run.data")
        except InputError as error:
            problems += error.problems
    return problems
