"""A study put together: arms resolved, spaces narrowed to what is alive, data looked at, nothing started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdistill.data.opening import open_dataset, open_fold
from mmdistill.errors import ConfigError, InputError, Problem
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.stages import VERSIONS
from mmdistill.registry import unknown_name
from mmdistill.settings import Dimension, digest
from mmdistill.studies.arms import entries_of, runs_of
from mmdistill.studies.file import PLANNED_LANES, ArmEntry, Contrast, StudyFile, read_study_file, sound_part
from mmdistill.studies.space import narrowed_space, unused_problems
from mmdistill.terms.base import Task

BASELINE_RECIPE = "student_only"


@dataclass(frozen=True)
class Arm:
    """One alternative, ready to be searched.

    Attributes:
        run: its settings before the search, with seed and fold 0.
        space: what is searched, by dotted path, in alphabetical order.
        note: which equal arms were merged into it.
        baseline: the arm without a teacher it is compared with; its own name for the study's baseline.
        frozen: the arm whose winner's settings it takes; None for one that is searched.
        base: the arm it was generated from, if any.
        change: in words, how it differs from its base.
    """

    name: str
    recipe: str
    run: RunSettings
    space: Mapping[str, Dimension]
    note: str | None = None
    baseline: str = ""
    frozen: str | None = None
    base: str | None = None
    change: str | None = None

    @property
    def digest(self) -> str:
        """Return the identity of the arm's settings and space; its name does not matter."""
        space = {path: dimension.as_json() for path, dimension in self.space.items()}
        return digest([canonical(self.run).as_json(), space])


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

    @property
    def lanes(self) -> int:
        """Return how many runs train together at most; of ``auto`` that is not settled yet, the default."""
        lanes = self.file.resources.lanes
        return PLANNED_LANES if lanes == "auto" else lanes

    def resolved(self) -> dict[str, Any]:
        """Return what identifies the study; two runs with equal values continue each other."""
        file = self.file.as_json()
        kept = ("name", "seed", "search", "confirm", "contrasts", "reference", "margin")
        # By name, so that a difference is told per key and not as two lists.
        arms = {
            arm.name: {
                "recipe": arm.recipe,
                "run": arm.run.as_json(),
                "space": {path: dimension.as_json() for path, dimension in arm.space.items()},
            }
            for arm in self.arms
        }
        return {key: file[key] for key in kept} | {
            "lanes": self.file.resources.lanes,
            "arms": arms,
            "order": [arm.name for arm in self.arms],
            "fingerprints": list(self.fingerprints),
            "stage_versions": VERSIONS,
        }


def open_study(path: Path, edits: Sequence[str] = ()) -> Study:
    """Return the study in a TOML file, with ``key=value`` edits laid on top.

    Raises:
        InputError: with every problem, those of the file's form and those of what it asks for at once.
    """
    try:
        file = read_study_file(path, edits)
    except ConfigError as error:
        problems = list(error.problems)
        sound = sound_part(path, edits)
        if sound is not None:
            try:
                assemble(sound, str(path))
            except InputError as more:
                problems += more.problems
        raise ConfigError(_without_repeats(problems)) from error
    return assemble(file, str(path))


def assemble(file: StudyFile, where: str) -> Study:
    """Return the study a file describes.

    Raises:
        InputError: with every problem of the arms, the search space, the contrasts and the data.
    """
    entries, problems = entries_of(file, where)
    runs, wrong = runs_of(entries, file, where)
    problems += wrong
    names = [entry.name for entry in entries]
    if problems or not runs:
        # The spaces cannot be judged without the runs, the names of the contrasts can.
        _contrasts(file, dict(zip(names, names, strict=True)), where, problems)
        raise ConfigError(_without_repeats(problems))
    data = runs[names[0]].data
    card = open_dataset(data).card()
    arms = [_arm(entry, runs[entry.name], file, card.task, where, problems) for entry in entries]
    problems += unused_problems(file.search.space, file.arms, runs, card.task, where)
    kept, found = _merged_by_digest(arms)
    baseline = _baseline(arms, found, where, problems)
    contrasts = _contrasts(file, found, where, problems)
    problems += _worker_problems(file, kept, where)
    if problems:
        raise ConfigError(_without_repeats(problems))
    reference = None if file.reference is None else found[file.reference]
    file = file.model_copy(update={"contrasts": contrasts, "reference": reference})
    prints = tuple(open_fold(data, fold).fingerprint for fold in range(data.fold_count))
    return Study(file, tuple(kept), card.task, card.name, baseline, prints)


def _arm(
    entry: ArmEntry, run: RunSettings, file: StudyFile, task: Task, where: str, problems: list[Problem]
) -> Arm:
    space, wrong = narrowed_space(entry, run, file.search.space, task, where)
    problems += wrong
    return Arm(entry.name, entry.recipe, run, space)


def _baseline(arms: Sequence[Arm], names: Mapping[str, str], where: str, problems: list[Problem]) -> str:
    """Return the arm that all others are compared with: the student without any teacher."""
    for arm in arms:
        if arm.recipe == BASELINE_RECIPE and not arm.run.active_terms():
            return names[arm.name]
    mend = 'add an arm with recipe = "student_only"'
    problems.append(Problem(f"{where}: arms", "every study compares with `student_only`", mend))
    return ""


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
) -> tuple[Contrast, ...]:
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
