"""The settings of one run, and what they mean for its networks."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from mmdistill.data.opening import DataSettings
from mmdistill.models.network import NetworkSettings
from mmdistill.registry import unknown_name
from mmdistill.settings import Range, Settings, declared_ranges
from mmdistill.terms import TERMS, TermSettings
from mmdistill.terms.base import Task
from mmdistill.training.optimiser import OptimiserSettings

RESERVED = ("each", "joint", "student", "privileged")


class TeacherSettings(Settings):
    """Which networks teach, and how they are trained.

    A name in ``pool`` is a modality, modalities joined by ``+``, or one of: ``each`` (one network per
    privileged modality), ``joint`` (the student's modalities and the privileged ones), ``student`` (the
    student's own, for self-distillation), ``privileged`` (the privileged ones together).

    ``labels = "permuted"`` is a control: the labelled rows swap their labels at random before teachers,
    their out-of-fold copies and auxiliaries learn them; so do the validation rows that choose their epoch.
    """

    pool: tuple[str, ...] = ()
    labels: Literal["true", "permuted"] = "true"
    training: Literal["frozen", "joint"] = "frozen"
    task_weight: Annotated[float, Field(ge=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    out_of_fold: Annotated[int, Field(ge=2, le=20)] = 5


class AlignmentSettings(Settings):
    """Self-distillation between the teachers before they teach (MT-PKDOT, equation 1)."""

    kind: Literal["none", "adapters"] = "none"
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    epochs: Annotated[int, Field(ge=1)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3


class SelectionSettings(Settings):
    """Which teacher a row or a batch learns from, and on what evidence.

    ``batch`` on ``in_sample`` evidence is the published code; it picks the most over-fitted teacher.
    Rows without a label follow the teacher that is best on the labelled rows (inferred).
    """

    policy: Literal["sample", "batch"] = "sample"
    evidence: Literal["out_of_fold", "in_sample"] = "out_of_fold"


class RunSettings(Settings):
    """One complete pipeline from data to metrics."""

    data: DataSettings
    network: NetworkSettings = NetworkSettings()
    teachers: TeacherSettings = TeacherSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    selection: SelectionSettings = SelectionSettings()
    terms: dict[str, SerializeAsAny[TermSettings]] = Field(default_factory=dict)
    optimiser: OptimiserSettings = OptimiserSettings()
    epochs: Annotated[int, Field(ge=1)] = 40
    batch_size: Annotated[int, Field(ge=2)] = 64
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("terms", mode="before")
    @classmethod
    def _knows_its_terms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: _term_settings(name, settings) for name, settings in value.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def active_terms(self) -> dict[str, TermSettings]:
        """Return the terms with a weight above 0, in alphabetical order."""
        return {name: self.terms[name] for name in sorted(self.terms) if self.terms[name].weight > 0}

    def networks(self) -> dict[str, tuple[str, ...]]:
        """Return the modalities of each teacher of the pool, by name."""
        data = self.data
        found: dict[str, tuple[str, ...]] = {}
        for name in self.teachers.pool:
            if name == "each":
                found |= {modality: (modality,) for modality in data.privileged}
            else:
                found[name] = network_modalities(name, data)
        return found

    def needs_auxiliary(self) -> bool:
        """Return whether a term asks for a network on the privileged modalities only."""
        return self.looks_at("auxiliary")

    def looks_at(self, part: str) -> bool:
        """Return whether a term asks for that part of a batch (``pool``, ``layers``, ``masked`` ...)."""
        return any(part in TERMS[name].needs for name in self.active_terms())

    def trains_teacher(self) -> bool:
        """Return whether the teacher is trained together with the student."""
        return self.teachers.training == "joint"


def network_modalities(name: str, data: DataSettings) -> tuple[str, ...]:
    """Return the modalities a network of that name sees, in alphabetical order."""
    named = {
        "joint": data.student + data.privileged,
        "student": data.student,
        "privileged": data.privileged,
    }
    return tuple(sorted(named[name] if name in named else name.split("+")))


def _term_settings(name: str, settings: Any) -> Any:
    if isinstance(settings, TermSettings):
        return settings
    if name not in TERMS:
        problem = unknown_name("term", name, "terms", list(TERMS))
        raise ValueError(f"{problem.rule}: {problem.mend}")
    try:
        return TERMS[name].settings_type.model_validate(settings)
    except ValidationError as error:
        found = [(".".join(map(str, d["loc"])), d["msg"], d["input"]) for d in error.errors()]
        details = ", ".join(f"`{key}`: {message} (got {value!r})" for key, message, value in found)
        raise ValueError(f"term {name}: {details}") from error


def _contradictions(run: RunSettings) -> list[str]:
    return [*_pool_problems(run), *_teaching_problems(run), *_term_problems(run), *_teacher_problems(run)]


def _pool_problems(run: RunSettings) -> list[str]:
    data, problems = run.data, []
    for name in run.teachers.pool:
        foreign = set() if name in RESERVED else set(name.split("+")) - set(data.modalities)
        if foreign:
            mend = f"name modalities of data.student or data.privileged, or one of {', '.join(RESERVED)}"
            problems.append(f"teachers.pool: {name!r} is no teacher of this run ({mend})")
        if name in {"each", "joint", "privileged"} and not data.privileged:
            needs = "needs privileged modalities, and data.privileged is empty"
            problems.append(f"teachers.pool: {name!r} {needs}")
    return problems


def _teaching_problems(run: RunSettings) -> list[str]:
    problems = []
    if run.trains_teacher() and len(run.networks()) != 1:
        only = "a jointly trained teacher must be the only one"
        problems.append(f"{only}, but the pool is {list(run.networks())}")
    if run.alignment.kind != "none" and "joint" not in run.teachers.pool:
        missing = "which is not in teachers.pool"
        problems.append(f"alignment pulls the other teachers to the `joint` one, {missing}")
    return problems


def _term_problems(run: RunSettings) -> list[str]:
    terms, problems = run.active_terms(), []
    needy = [name for name in terms if TERMS[name].needs & {"teacher", "pool"}]
    if needy and not run.teachers.pool:
        problems.append(f"terms.{needy[0]} needs a teacher, and teachers.pool is empty")
    if run.needs_auxiliary() and not run.trains_teacher():
        problems.append('an auxiliary network needs `teachers.training = "joint"`')
    if run.needs_auxiliary() and not run.data.privileged:
        problems.append("an auxiliary network needs privileged modalities, and data.privileged is empty")
    pooled = [name for name in terms if "pool" in TERMS[name].needs]
    if pooled and run.trains_teacher():
        frozen = 'and with `teachers.training = "joint"` none is frozen'
        problems.append(f"terms.{pooled[0]} needs every frozen teacher, {frozen}")
    for path, most in greatest(run).items():
        _, name, field = path.split(".")
        value = getattr(terms[name], field)
        if value > most:
            limit = f"at most {most} with batch_size {run.batch_size}"
            problems.append(f"{path} must be {limit}, but is {value}")
    return problems


def _teacher_problems(run: RunSettings) -> list[str]:
    """Return what terms ask of teachers that these cannot do."""
    terms, problems = run.active_terms(), []
    blind = [name for name, seen in run.networks().items() if not set(seen) & set(run.data.student)]
    if run.looks_at("masked") and blind:
        needed = "where a term masks modalities, each must see one of the student's"
        problems.append(f"teachers.pool: {blind[0]!r} sees none of data.student ({needed})")
    own = tuple(sorted(run.data.student))
    if run.looks_at("average") and (not run.trains_teacher() or set(run.networks().values()) != {own}):
        peer = 'a peer on the student\'s modalities: `training = "joint"` and `pool = ["student"]`'
        problems.append(f"teachers: a term averages two students and needs {peer}")
    senders = [name for name, settings in terms.items() if getattr(settings, "teacher_gradient", False)]
    if senders and not run.trains_teacher():
        frozen = 'needs `teachers.training = "joint"`: a frozen teacher learns nothing'
        problems.append(f"terms.{senders[0]}.teacher_gradient {frozen}")
    return problems


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


def greatest(run: RunSettings) -> dict[str, int]:
    """Return the greatest values of the live settings that the batch size limits, by dotted path."""
    return {
        f"terms.{name}.{field}": most
        for name, settings in run.active_terms().items()
        for field, most in settings.most(run.batch_size).items()
        if field not in settings.dead()
    }


def canonical(run: RunSettings) -> RunSettings:
    """Return the run with everything that changes nothing at its default, so that equal runs look equal."""
    terms = {name: _without_dead(settings) for name, settings in run.active_terms().items()}
    changes: dict[str, Any] = {"terms": terms, "teachers": _teachers_that_matter(run)}
    several = len(run.networks()) > 1 and bool(terms)
    if not several:
        # A term on all teachers sees the evidence of a single one too.
        evidence = {"evidence": run.selection.evidence} if run.looks_at("pool") else {}
        changes |= {"selection": SelectionSettings(**evidence), "alignment": AlignmentSettings()}
    elif run.alignment.kind == "none":
        changes["alignment"] = AlignmentSettings()
    return run.model_copy(update=changes)


def _teachers_that_matter(run: RunSettings) -> TeacherSettings:
    teachers = run.teachers
    if not run.active_terms():
        return TeacherSettings()
    if run.trains_teacher():
        names = ("pool", "labels", "training", "task_weight")
        return TeacherSettings(**{name: getattr(teachers, name) for name in names})
    return teachers.model_copy(update={"task_weight": TeacherSettings().task_weight})


def _without_dead(settings: TermSettings) -> TermSettings:
    defaults = type(settings)()
    alone = {name: settings.model_copy(update={name: getattr(defaults, name)}) for name in settings.dead()}
    # An infinite value that makes its own field dead to a search still says what the term is.
    still_dead = [name for name, changed in alone.items() if name in changed.dead()]
    return settings.model_copy(update={name: getattr(defaults, name) for name in still_dead})


def live_ranges(run: RunSettings, task: Task) -> dict[str, Range]:
    """Return the declared ranges of the settings that matter in this run, by dotted path."""
    active = run.active_terms()
    dead = {f"terms.{name}.{field}" for name, settings in active.items() for field in settings.dead()}
    if task == "regression":
        dead.add("optimiser.label_smoothing")
        dead |= {f"terms.{name}.{field}" for name in active for field in TERMS[name].classification_only}
    return {
        path: found
        for path, found in declared_ranges(run).items()
        if path not in dead and (not path.startswith("terms.") or path.split(".")[1] in active)
    }
