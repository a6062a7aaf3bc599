"""A study put together: arms resolved, spaces narrowed to what is alive, data looked at, nothing started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmdistill.data.card import Card
from mmdistill.data.opening import DataSettings, open_dataset, open_fold, with_counted_folds
from mmdistill.errors import ConfigError, InputError, Problem
from mmdistill.pipeline.run import RunSettings, unfit_terms
from mmdistill.pipeline.stages import VERSIONS
from mmdistill.registry import unknown_name
from mmdistill.studies.arm import Arm, folds_identity, main_baseline, merged_by_digest, with_baselines
from mmdistill.studies.arms import entries_of, runs_of
from mmdistill.studies.file import PLANNED_LANES, ArmEntry, Contrast, StudyFile, read_study_file, sound_part
from mmdistill.studies.frozen import frozen_arm
from mmdistill.studies.search import search_problems
from mmdistill.studies.space import narrowed_space, unused_problems
from mmdistill.terms.base import Task


@dataclass(frozen=True)
class Study:
    """A valid study.

    Attributes:
        prints: fingerprints of the data of each fold, by the division into folds.
    """

    file: StudyFile
    arms: tuple[Arm, ...]
    task: Task
    dataset: str
    baseline: str
    prints: Mapping[str, tuple[str, ...]]

    def fingerprint(self, data: DataSettings, fold: int) -> str:
        """Return what identifies the data of a fold of some arm's."""
        return self.prints[_division(data)][fold]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints of every fold of every division, the first arm's division first."""
        return tuple(one for division in self.prints.values() for one in division)

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
                "frozen": arm.frozen,
            }
            for arm in self.arms
        }
        stated = {key: file[key] for key in ("prices", "price_unit") if file[key]}
        return (
            {key: file[key] for key in kept}
            | stated
            | {
                "lanes": self.file.resources.lanes,
                "arms": arms,
                "order": [arm.name for arm in self.arms],
                "baseline": self.baseline,
                # By division and fold, so that an added arm may bring folds of its own.
                "fingerprints": {
                    division: {str(fold): found for fold, found in enumerate(prints)}
                    for division, prints in self.prints.items()
                },
                "stage_versions": VERSIONS,
            }
        )


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
        known = [*names, *_perhaps_generated(file, names)]
        _contrasts(file, dict(zip(known, known, strict=True)), where, problems)
        raise ConfigError(_without_repeats(problems))
    runs = {name: _counted(run) for name, run in runs.items()}
    data = runs[names[0]].data
    card = open_dataset(data).card()
    problems += _unfit_problems(runs, card, where)
    arms = _arms(entries, runs, file, card.task, where, problems)
    problems += unused_problems(file.search.space, file.arms, runs, card.task, where)
    kept, found = merged_by_digest(arms)
    baseline = main_baseline(arms, found, where, problems)
    kept = with_baselines(kept, baseline, where, problems) if baseline else kept
    contrasts = _contrasts(file, found, where, problems)
    problems += _worker_problems(file, kept, where)
    problems += _price_problems(file, runs, where)
    searched = [arm for arm in kept if not arm.frozen]
    epochs = {arm.name: arm.run.epochs for arm in searched}
    problems += search_problems(file, epochs, {arm.name: arm.space for arm in searched}, where)
    if problems:
        raise ConfigError(_without_repeats(problems))
    reference = None if file.reference is None else found[file.reference]
    file = file.model_copy(update={"contrasts": contrasts, "reference": reference})
    return Study(file, tuple(kept), card.task, card.name, baseline, _fingerprints(kept))


def _counted(run: RunSettings) -> RunSettings:
    return run.model_copy(update={"data": with_counted_folds(run.data)})


def _arms(
    entries: Sequence[ArmEntry],
    runs: Mapping[str, RunSettings],
    file: StudyFile,
    task: Task,
    where: str,
    problems: list[Problem],
) -> list[Arm]:
    """Return every arm in the order of the file; the frozen ones need the spaces of the others."""
    searched: dict[str, Arm] = {}
    for entry in entries:
        if entry.frozen is None:
            run = runs[entry.name]
            space, wrong = narrowed_space(entry, run, file.search.space, task, where)
            problems += wrong
            arm = Arm(entry.name, entry.recipe, run, space, base=entry.base, change=entry.change)
            searched[entry.name] = arm
    _, names = merged_by_digest(list(searched.values()))
    arms = [
        searched.get(entry.name) or frozen_arm(entry, runs, searched, task, where, problems)
        for entry in entries
    ]
    # A merged arm is found under the name of the first of its kind.
    return [
        replace(arm, frozen=names.get(arm.frozen or ""), base=names.get(arm.base or "", arm.base))
        for arm in arms
    ]


def _fingerprints(arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    prints: dict[str, tuple[str, ...]] = {}
    for arm in arms:
        data = arm.run.data
        division = _division(data)
        if division not in prints:
            prints[division] = tuple(open_fold(data, fold).fingerprint for fold in data.folds.opened_folds)
    return prints


def _division(data: DataSettings) -> str:
    return "-".join(map(str, folds_identity(data)))


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


def _perhaps_generated(file: StudyFile, names: Sequence[str]) -> list[str]:
    """Return what contrasts name that a design would generate if its base were sound."""
    if not file.designs and not any(arm.controls for arm in file.arms):
        return []
    asked = [name for contrast in file.contrasts for name in (contrast.arm, contrast.against)]
    starts = tuple(f"{name}{sign}" for name in names for sign in "@-.")
    return [name for name in dict.fromkeys(asked) if name not in names and name.startswith(starts)]


def _unfit_problems(runs: Mapping[str, RunSettings], card: Card, where: str) -> list[Problem]:
    mend = "leave the term out of this arm"
    return [
        Problem(f"{where}: arms.{name}", f"{rule} (data set {card.name!r})", mend)
        for name, run in runs.items()
        for rule in unfit_terms(run, card.task, card.classes)
    ]


def _price_problems(file: StudyFile, runs: Mapping[str, RunSettings], where: str) -> list[Problem]:
    privileged = list(dict.fromkeys(name for run in runs.values() for name in run.data.privileged))
    return [
        unknown_name("privileged modality", name, f"{where}: prices.{name}", privileged)
        for name in file.prices
        if name not in privileged
    ]


def _worker_problems(file: StudyFile, arms: Sequence[Arm], where: str) -> list[Problem]:
    workers = file.resources.workers
    sizes = sorted({arm.run.batch_size for arm in arms if workers > 1 and arm.run.batch_size % workers})
    mend = "change run.batch_size or resources.workers"
    rule = "the batch is shared out evenly, so `workers` must divide `batch_size`"
    return [Problem(f"{where}: resources.workers", f"{rule} {size} (got {workers})", mend) for size in sizes]


def _without_repeats(problems: Sequence[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


__all__ = ["Arm", "Study", "assemble", "open_study"]
