"""An arm put together: what identifies it, which arms are the same, and which one it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmdistill.data.opening import DataSettings
from mmdistill.errors import Problem
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.settings import Dimension, digest

BASELINE_RECIPE = "student_only"


@dataclass(frozen=True)
class Arm:
    """One alternative, ready to be searched.

    Attributes:
        run: its settings before the search, with seed and fold 0.
        space: what is searched, by dotted path, in alphabetical order; empty for a frozen arm.
        note: which equal arms were merged into it.
        baseline: the arm without a teacher it is compared with; its own name for the study's baseline.
        frozen: the arm whose winner's settings it takes; None for one that is searched.
        inherits: the searched paths of that arm whose values it takes: those that are alive in it too and
            that it does not change itself.
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
    inherits: tuple[str, ...] = ()
    base: str | None = None
    change: str | None = None

    @property
    def digest(self) -> str:
        """Return the identity of the arm's settings and space; its name does not matter."""
        space = {path: dimension.as_json() for path, dimension in self.space.items()}
        return digest([identity(self.run), space, self.frozen, self.inherits])


def identity(run: RunSettings) -> dict[str, Any]:
    """Return what decides the results of a run, however it was written: equal runs are equal here."""
    run = canonical(run)
    seen = {modality for modalities in run.networks().values() for modality in modalities}
    if run.needs_auxiliary() or run.missing() is not None:
        seen |= set(run.data.privileged)
    tree = run.as_json()
    tree["teachers"]["pool"] = list(run.networks())
    tree["data"] |= {
        "privileged": sorted(seen & set(run.data.privileged)),
        "folds": folds_identity(run.data),
    }
    return tree


def place_in_lattice(arm: Arm) -> dict[str, Any]:
    """Return what a report needs to find the arms that differ in their teachers alone.

    ``privileged``: the modalities its teachers see beside the student's; ``teachers``: its networks;
    ``alike``: by what is left out of it, a digest of all other settings before the search. None where the
    search chooses the networks.
    """
    tree = arm.run.as_json()
    privileged, pool = tree["data"].pop("privileged"), tree["teachers"].pop("pool")
    is_searched = any(path.startswith("teachers.pool") for path in arm.space)
    alike = {
        "privileged": digest([tree, pool]),
        "teachers": digest([tree, sorted(privileged)]),
    }
    return {
        "privileged": identity(arm.run)["data"]["privileged"],
        "teachers": list(arm.run.networks()) if arm.run.is_taught() else [],
        "alike": None if is_searched else alike,
    }


def folds_identity(data: DataSettings) -> list[str | int]:
    """Return what decides the division into folds and where winners are searched."""
    return [*data.folds.identity, data.folds.tuning] if data.fold_count > 1 else list(data.folds.identity)


def data_context(data: DataSettings) -> dict[str, Any]:
    """Return what arms must share to be compared as methods: student modalities, labels, folds."""
    return {
        "data.dataset": data.dataset,
        "data.options": data.options,
        "data.student": sorted(data.student),
        "data.label_fraction": data.label_fraction,
        "data.folds": folds_identity(data),
    }


def merged_by_digest(arms: Sequence[Arm]) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms that differ, and under which name each arm of the file is found."""
    kept: dict[str, Arm] = {}
    names: dict[str, str] = {}
    for arm in arms:
        first = kept.setdefault(arm.digest, arm)
        names[arm.name] = first.name
        if first.name != arm.name:
            note = f"{first.note}, {arm.name}" if first.note else f"also {arm.name}"
            kept[arm.digest] = replace(first, note=note)
    return list(kept.values()), names


def main_baseline(arms: Sequence[Arm], names: Mapping[str, str], where: str, problems: list[Problem]) -> str:
    """Return the arm that all others are compared with: the student without any teacher.

    ``names`` tells under which name an arm that was merged is found.
    """
    for arm in arms:
        if arm.recipe == BASELINE_RECIPE and _is_alone(arm):
            return names[arm.name]
    mend = f'add an arm with recipe = "{BASELINE_RECIPE}"'
    problems.append(Problem(f"{where}: arms", f"every study compares with `{BASELINE_RECIPE}`", mend))
    return ""


def with_baselines(arms: Sequence[Arm], main: str, where: str, problems: list[Problem]) -> list[Arm]:
    """Return the arms, each with the one it is compared with: the student alone on the same data.

    Of several, it is the one with the same student and optimiser, else the first. A student alone is
    compared with the main baseline.
    """
    alone = [arm for arm in arms if _is_alone(arm)]
    missing: dict[str, Arm] = {}
    found = []
    for arm in arms:
        context = data_context(arm.run.data)
        same = [one for one in alone if data_context(one.run.data) == context]
        if _is_alone(arm):
            found.append(replace(arm, baseline=main))
        elif same:
            found.append(replace(arm, baseline=_nearest(arm, same).name))
        else:
            missing.setdefault(digest(context), arm)
    (reference,) = [arm for arm in arms if arm.name == main]
    problems += [_missing(arm, reference, where) for arm in missing.values()]
    return found


def _is_alone(arm: Arm) -> bool:
    return not arm.run.is_taught() and arm.frozen is None


def _nearest(arm: Arm, alone: Sequence[Arm]) -> Arm:
    without = identity(arm.run.model_copy(update={"terms": {}}))
    return next((one for one in alone if identity(one.run) == without), alone[0])


def _missing(arm: Arm, reference: Arm, where: str) -> Problem:
    mine, others = data_context(arm.run.data), data_context(reference.run.data)
    differences = [path for path in mine if mine[path] != others[path]]
    told = ", ".join(f"{path} = {mine[path]!r}" for path in differences)
    mend = f'add "{reference.name}" to the `bases` of its design, or an arm without a teacher on these data'
    rule = f"no arm without a teacher has its data ({told}), so there is nothing to compare it with"
    return Problem(f"{where}: arms.{arm.name}", rule, mend)
