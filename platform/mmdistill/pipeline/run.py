"""The settings of one run whose parts fit together, and what of them matters."""

from collections.abc import Collection
from typing import Self, TypeVar

from pydantic import model_validator

from mmdistill.pipeline.contradictions import contradictions, dead_fields
from mmdistill.pipeline.parts import AlignmentSettings, Parts, SelectionSettings, TeacherSettings
from mmdistill.settings import Range, Settings, declared_ranges
from mmdistill.terms import TERMS, TermSettings
from mmdistill.terms.base import Task


class RunSettings(Parts):
    """One complete pipeline from data to metrics."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = contradictions(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def unfit_terms(run: RunSettings, task: Task, classes: int | None) -> list[str]:
    """Return why terms of a run say nothing about a data set."""
    problems = []
    for name, settings in run.active_terms().items():
        term = TERMS[name]
        least = max(term.least_classes, settings.least_classes())
        if task not in term.tasks:
            problems.append(f"terms.{name} is not defined for {task}")
        elif classes is not None and classes < least:
            needs = f"needs at least {least} classes to say anything, and there are {classes}"
            problems.append(f"terms.{name} {needs}")
    return problems


def canonical(run: RunSettings) -> RunSettings:
    """Return the run with everything that changes nothing at its default, so that equal runs look equal."""
    terms = {n: _without_dead(settings, dead_fields(run, n)) for n, settings in run.active_terms().items()}
    return run.model_copy(
        update={
            "terms": terms,
            "teachers": _teachers_that_matter(run),
            "alignment": _only(run.alignment, _live_alignment(run)),
            "selection": _only(run.selection, _live_selection(run)),
            "hallucinator": _only(run.hallucinator, {"kind", "loss"} if run.hallucinates() else {"kind"}),
            "student": _only(run.student, {"init", "task_weight"} if terms else {"init"}),
        }
    )


Part = TypeVar("Part", bound=Settings)


def _only(settings: Part, kept: Collection[str]) -> Part:
    """Return settings with the other fields at their defaults."""
    return type(settings)(**{name: getattr(settings, name) for name in kept})


# What decides a teacher that is trained before the student, beside its labels.
_SCHOOLING = {"epochs", "learning_rate", "weight_decay", "label_smoothing", "out_of_fold"}


def _teachers_that_matter(run: RunSettings) -> TeacherSettings:
    kept: set[str] = set()
    if run.is_taught():
        kept |= {"pool", "labels", "training"} | ({"task_weight"} if run.trains_teacher() else _SCHOOLING)
        if run.trains_teacher() and run.frozen_networks():
            kept |= {"auxiliary"} | _SCHOOLING
    if run.student.init != "fresh":
        kept |= _SCHOOLING
    teachers = _only(run.teachers, kept)
    if run.hallucinates() and not run.active_terms():
        teachers = teachers.model_copy(update={"pool": ("joint",)})
    return teachers


def _live_alignment(run: RunSettings) -> set[str]:
    if run.alignment.kind == "none" or len(run.networks()) < 2 or not run.active_terms():
        return set()
    return set(AlignmentSettings.model_fields) - ({"temperature"} if run.alignment.loss != "kl" else set())


def _live_selection(run: RunSettings) -> set[str]:
    """Return the fields of the selection that change something."""
    # A term on all teachers sees the evidence on a single one too.
    policy, live = run.selection.policy, {"evidence"} if run.looks_at("pool") else set()
    if len(run.networks()) > 1 and run.looks_at("teacher"):
        own = {"mean": set(), "weighted": {"evidence", "temperature"}, "fixed": {"fixed_to"}}
        own |= {"sample": {"evidence"}, "batch": {"evidence", "regression"}}
        live |= {"policy"} | own[policy]
    return live


def _without_dead(settings: TermSettings, dead: frozenset[str]) -> TermSettings:
    defaults = type(settings)()
    alone = {name: settings.model_copy(update={name: getattr(defaults, name)}) for name in dead}
    # An infinite value that makes its own field dead to a search still says what the term is.
    of_itself = settings.dead()
    still_dead = [name for name, changed in alone.items() if name not in of_itself - changed.dead()]
    return settings.model_copy(update={name: getattr(defaults, name) for name in still_dead})


def live_ranges(run: RunSettings, task: Task) -> dict[str, Range]:
    """Return the declared ranges of the settings that matter in this run, by dotted path."""
    active = run.active_terms()
    dead = {f"terms.{name}.{field}" for name in active for field in dead_fields(run, name)}
    dead |= {f"selection.{field}" for field in SelectionSettings.model_fields} - {
        f"selection.{field}" for field in _live_selection(run)
    }
    if task == "regression":
        dead.add("optimiser.label_smoothing")
        dead |= {f"terms.{name}.{field}" for name in active for field in TERMS[name].classification_only}
    return {
        path: found
        for path, found in declared_ranges(run).items()
        if path not in dead and (not path.startswith("terms.") or path.split(".")[1] in active)
    }
