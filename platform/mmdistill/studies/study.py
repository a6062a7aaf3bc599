"""A study put together: arms resolved, spaces narrowed to what is alive, data looked at, nothing started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mmdistill.data.opening import DataSettings, check_data, open_dataset, open_fold
from mmdistill.errors import ConfigError, InputError, Problem
from mmdistill.pipeline.recipe import recipes
from mmdistill.pipeline.run import RunSettings, canonical, live_ranges
from mmdistill.pipeline.stages import VERSIONS
from mmdistill.registry import unknown_name
from mmdistill.settings import Choice, Dimension, Range, digest, edited, flattened, merged
from mmdistill.studies.designs import DESIGNS
from mmdistill.studies.file import ArmEntry, Space, StudyFile
from mmdistill.terms.base import Task

BASELINE_RECIPE = "student_only"


@dataclass(frozen=True)
class Arm:
    """One alternative, ready to be searched.

    Attributes:
        run: its settings before the search, with seed and fold 0.
        space: what is searched, by dotted path, in alphabetical order.
        note: which equal arms were merged into it.
    """

    name: str
    recipe: str
    run: RunSettings
    space: Mapping[str, Dimension]
    note: str | None = None

    @property
    def digest(self) -> str:
        """Return the identity of the arm's settings and space; its name does not matter."""
        space = {path: dimension.as_json() for path, dimension in self.space.items()}
        return digest([self.run.as_json(), space])


@dataclass(frozen=True)
class Study:
    """A valid study.

    Attributes:
        fingerprints: of the data of each fold.
    """

    file: StudyFile
    arms: tuple[Arm, ...]
    task: Task
    dataset: str
    baseline: str
    fingerprints: tuple[str, ...]

    @property
    def score(self) -> str:
        """Return the metric that is reported; higher is better."""
        return "accuracy" if self.task == "classification" else "ccc"

    def resolved(self) -> dict[str, Any]:
        """Return what identifies the study; two runs with equal values continue each other."""
        file = self.file.as_json()
        kept = ("name", "seed", "search", "confirm", "contrasts", "reference", "margin")
        arms = [
            {
                "name": arm.name,
                "recipe": arm.recipe,
                "run": arm.run.as_json(),
                "space": {path: dimension.as_json() for path, dimension in arm.space.items()},
            }
            for arm in self.arms
        ]
        return {key: file[key] for key in kept} | {
            "lanes": self.file.resources.lanes,
            "arms": arms,
            "fingerprints": list(self.fingerprints),
            "stage_versions": VERSIONS,
        }


def assemble(file: StudyFile, where: str) -> Study:
    """Return the study a file describes.

    Raises:
        InputError: with every problem of the arms, the search space, the contrasts and the data.
    """
    problems: list[Problem] = []
    entries = _with_designs(file, where, problems)
    runs = {entry.name: run for entry in entries if (run := _run_of(entry, file, where, problems)) is not None}
    problems += _data_problems([run.data for run in runs.values()], where)
    if problems:
        raise ConfigError(_without_repeats(problems))
    data = next(iter(runs.values())).data
    card = open_dataset(data).card()
    arms = [_arm(entry, runs[entry.name], file, card.task, where, problems) for entry in entries]
    problems += _unused_dimensions(file.search.space, arms, where)
    merged_arms, names = _merged_by_digest(arms)
    baseline = next((arm.name for arm in merged_arms if arm.recipe == BASELINE_RECIPE), None)
    if baseline is None:
        mend = 'add an arm with recipe = "student_only"'
        problems.append(Problem(f"{where}: arms", "every study compares with `student_only`", mend))
    contrasts = _contrasts(file, names, where, problems)
    problems += _worker_problems(file, merged_arms, where)
    if problems or baseline is None:
        raise ConfigError(_without_repeats(problems))
    reference = None if file.reference is None else names[file.reference]
    file = file.model_copy(update={"contrasts": contrasts, "reference": reference})
    prints = tuple(open_fold(data, fold).fingerprint for fold in range(data.fold_count))
    return Study(file, tuple(merged_arms), card.task, card.name, baseline, prints)


def _with_designs(file: StudyFile, where: str, problems: list[Problem]) -> list[ArmEntry]:
    entries = {arm.name: arm for arm in file.arms}
    for number, tree in enumerate(file.designs):
        place = f"{where}: designs.{number}"
        kind, base = str(tree.get("kind")), str(tree.get("base"))
        if kind not in DESIGNS:
            problems.append(unknown_name("design", kind, f"{place}.kind", list(DESIGNS)))
            continue
        if base not in entries:
            problems.append(unknown_name("arm", base, f"{place}.base", list(entries)))
            continue
        try:
            design = DESIGNS[kind].model_validate(tree)
        except ValidationError as error:
            problems += [Problem(f"{place}.{d['loc'][0]}", d["msg"], "correct it") for d in error.errors()]
            continue
        privileged = _base_tree(entries[base], file).get("data", {}).get("privileged", [])
        entries |= {arm.name: arm for arm in design.arms(entries[base], privileged)}
    return list(entries.values())


def _base_tree(entry: ArmEntry, file: StudyFile) -> dict[str, Any]:
    known = recipes().get(entry.recipe)
    return edited(merged(file.run, known.run if known else {}), entry.edits)


def _run_of(entry: ArmEntry, file: StudyFile, where: str, problems: list[Problem]) -> RunSettings | None:
    place = f"{where}: arms.{entry.name}"
    if entry.recipe not in recipes():
        problems.append(unknown_name("recipe", entry.recipe, f"{place}.recipe", list(recipes())))
        return None
    try:
        return canonical(RunSettings.model_validate(_base_tree(entry, file)))
    except ValidationError as error:
        shared = set(flattened(file.run))
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"])
            # What the base of all arms says wrongly is said once, not once per arm.
            at = f"{where}: run.{path}" if _stems_from(path, shared) else f"{place}.run.{path}".rstrip(".")
            if detail["type"] == "extra_forbidden":
                problems.append(Problem(at, "unknown key", "remove it or correct its spelling"))
                continue
            got = "" if isinstance(detail["input"], dict | RunSettings) else f" (got {detail['input']!r})"
            problems.append(Problem(at, f"{detail['msg'].removeprefix('Value error, ')}{got}", "correct it"))
        return None


def _stems_from(path: str, shared: set[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.") for key in shared)


def _data_problems(data: Sequence[DataSettings], where: str) -> list[Problem]:
    problems: list[Problem] = []
    for settings in {found.digest: found for found in data}.values():
        try:
            problems += check_data(settings, f"{where}: run.data")
        except InputError as error:
            problems += error.problems
    return problems


def _arm(
    entry: ArmEntry, run: RunSettings, file: StudyFile, task: Task, where: str, problems: list[Problem]
) -> Arm:
    declared = live_ranges(run, task)
    space: dict[str, Dimension] = dict(declared)
    for path, asked in {**file.search.space, **entry.space}.items():
        if not is_live(path, run, declared):
            continue
        if asked is False:
            space.pop(path, None)
        elif asked is not True:
            space[path] = asked
            key = "search.space" if path in file.search.space else f"arms.{entry.name}.space"
            problems += _end_problems(path, asked, run, f"{where}: {key}.{path}")
        elif path not in declared:
            mend = "give `low` and `high`, or `choice`"
            problems.append(Problem(f"{where}: search.space.{path}", "no range is declared for it", mend))
    if not space:
        mend = "search at least learning rate, weight decay or label smoothing"
        problems.append(Problem(f"{where}: arms.{entry.name}", "nothing is left to search in this arm", mend))
    return Arm(entry.name, entry.recipe, run, dict(sorted(space.items())))


def is_live(path: str, run: RunSettings, declared: Mapping[str, Range]) -> bool:
    """Return whether a setting exists in the run and changes something."""
    if path in declared:
        return True
    if path.startswith("terms."):
        _, name, field = (path.split(".") + ["", ""])[:3]
        active = run.active_terms()
        return name in active and field in type(active[name]).model_fields and field not in active[name].dead()
    teaches = bool(run.active_terms())
    if path.startswith(("teachers.", "alignment.", "selection.")) and not teaches:
        return False
    if path == "teachers.pool" and run.trains_teacher():
        return False
    if path.startswith("alignment.") and path != "alignment.kind" and run.alignment.kind == "none":
        return False
    return path in flattened(run.as_json()) and path.split(".")[0] not in {"seed", "fold", "data"}


def _end_problems(path: str, dimension: Dimension, run: RunSettings, at: str) -> list[Problem]:
    """Return what is wrong with the ends of an interval, or with any alternative."""
    values = list(dimension.choice) if isinstance(dimension, Choice) else [dimension.low, dimension.high]
    problems = []
    for value in values:
        whole = int(value) if isinstance(dimension, Range) and dimension.integer else value
        try:
            RunSettings.model_validate(edited(run.as_json(), {path: whole}))
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            problems.append(Problem(at, f"{whole!r} is not allowed: {message}", "narrow the space"))
    return problems


def _unused_dimensions(space: Space, arms: Sequence[Arm], where: str) -> list[Problem]:
    problems = []
    for path, asked in space.items():
        used = any(is_live(path, arm.run, live_ranges(arm.run, "classification")) for arm in arms)
        if not used and asked is not False:
            mend = "remove it or correct its spelling"
            problems.append(Problem(f"{where}: search.space.{path}", "this changes nothing in any arm", mend))
    return problems


def _merged_by_digest(arms: Sequence[Arm]) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms that differ, and under which name each arm of the file is found."""
    kept: dict[str, Arm] = {}
    names: dict[str, str] = {}
    for arm in arms:
        first = kept.setdefault(arm.digest, arm)
        names[arm.name] = first.name
        if first.name != arm.name:
            note = f"{first.note}, {arm.name}" if first.note else f"also {arm.name}"
            kept[arm.digest] = Arm(first.name, first.recipe, first.run, first.space, note)
    return list(kept.values()), names


def _contrasts(
    file: StudyFile, names: Mapping[str, str], where: str, problems: list[Problem]
) -> tuple[Any, ...]:
    found = []
    for number, contrast in enumerate(file.contrasts):
        for key in ("arm", "against"):
            if getattr(contrast, key) not in names:
                at = f"{where}: contrasts.{number}.{key}"
                problems.append(unknown_name("arm", getattr(contrast, key), at, list(names)))
        first, second = (names.get(getattr(contrast, key), "") for key in ("arm", "against"))
        if first and first == second:
            mend = "remove it, or make them differ"
            problems.append(Problem(f"{where}: contrasts.{number}", "both arms are the same run", mend))
        found.append(contrast.model_copy(update={"arm": first, "against": second}))
    if file.reference is not None and file.reference not in names:
        problems.append(unknown_name("arm", file.reference, f"{where}: reference", list(names)))
    return tuple(found)


def _worker_problems(file: StudyFile, arms: Sequence[Arm], where: str) -> list[Problem]:
    workers = file.resources.workers
    sizes = sorted({arm.run.batch_size for arm in arms if workers > 1 and arm.run.batch_size % workers})
    mend = "change run.batch_size or resources.workers"
    rule = "the batch is shared out evenly, so `workers` must divide `batch_size`"
    return [Problem(f"{where}: resources.workers", f"{rule} {size} (got {workers})", mend) for size in sizes]


def _without_repeats(problems: Sequence[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
