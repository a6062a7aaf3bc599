"""The parts of a run, not yet held against each other, and what they mean for its networks."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from mmdistill.data.opening import DataSettings
from mmdistill.models.hallucinator import HallucinatorKind, Missing
from mmdistill.models.network import NetworkSettings
from mmdistill.registry import unknown_name
from mmdistill.settings import Settings, Tunable
from mmdistill.terms import TERMS, TermSettings
from mmdistill.training.objectives import AlignmentLossKind
from mmdistill.training.optimiser import OptimiserSettings
from mmdistill.training.student import HallucinationLoss
from mmdistill.training.teachers import Policy, RegressionEvidence


class TeacherSettings(Settings):
    """Which networks teach, and how they are trained.

    A name in ``pool`` is a modality, modalities joined by ``+``, or one of: ``each`` (one network per
    privileged modality), ``joint`` (the student's modalities and the privileged ones), ``student`` (the
    student's own, for self-distillation), ``privileged`` (the privileged ones together).

    ``labels = "permuted"`` is a control: the labelled rows swap their labels at random before teachers,
    their out-of-fold copies and auxiliaries learn them; so do the validation rows that choose their epoch.

    ``training = "joint"``: the teacher trains along with the student. Beside such a one ``auxiliary`` says
    whether the network on the privileged modalities alone trains along too or is trained before, as a
    teacher is (both inferred for AMID).
    """

    pool: tuple[str, ...] = ()
    labels: Literal["true", "permuted"] = "true"
    training: Literal["frozen", "joint"] = "frozen"
    auxiliary: Literal["joint", "frozen"] = "joint"
    task_weight: Annotated[float, Field(ge=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    out_of_fold: Annotated[int, Field(ge=2, le=20)] = 5


class AlignmentSettings(Settings):
    """Self-distillation between the teachers before they teach (MT-PKDOT, equation 1).

    ``adapters`` pulls what an adapter makes of each other teacher's features to the joint teacher's; ``raw``
    has no adapters: only the joint teacher's fusion and the heads move. The losses: ``cosine`` is the
    published one, ``mmd`` (five Gaussian kernels) and ``mse`` are options of its code, ``kl`` is inferred:
    T^2 KL(joint || other) between outputs softened by ``temperature``, in regression their squared
    difference. ``detach_joint`` lets the others come to the joint teacher and not it to them (the code does
    not detach).
    """

    kind: Literal["none", "raw", "adapters"] = "none"
    loss: AlignmentLossKind = "cosine"
    detach_joint: bool = False
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    epochs: Annotated[int, Field(ge=1)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3


class SelectionSettings(Settings):
    """Which teacher a row or a batch learns from, and on what evidence.

    ``batch`` on ``in_sample`` evidence is the published code; it picks the most over-fitted teacher. All
    else is inferred: ``sample`` chooses per row; ``mean`` averages features and logits of all teachers,
    ``weighted`` with weights softmax(-loss / temperature) per row; ``fixed`` always takes ``fixed_to``.
    Rows without a label follow the teacher that is best on the labelled rows, or are weighted by the mean
    loss there. The loss is the cross entropy in nats, or the squared error; in regression ``batch`` may
    compare teachers by 1 - CCC over the batch instead.
    """

    policy: Policy = "sample"
    evidence: Literal["out_of_fold", "in_sample"] = "out_of_fold"
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.03, high=3.0, log=True)] = 0.3
    fixed_to: str = "joint"
    regression: RegressionEvidence = "squared_error"


class HallucinatorSettings(Settings):
    """What stands in the student for the privileged modalities it will not see (T-Net).

    ``linear`` (MT-PKDOT) and ``relu`` (PKDOT) predict, from the student's own features, what the joint
    teacher's encoder makes of each privileged modality; ``zeros`` fuses zeros. They train in step with the
    student on ``loss`` alone (inferred; published as a stage of its own, whose loss, MMD, is commented out).
    Beside both structural terms ``relu`` with its sigmoid drowned the student's own features at a learning
    rate of 0.01 in two of five students on digits_views.
    """

    kind: Literal["none"] | HallucinatorKind = "none"
    loss: HallucinationLoss = "mmd"


class StudentSettings(Settings):
    """How the student begins, and what its own task weighs beside the terms.

    ``visual_only`` begins with the encoders of a network on the student's modalities that was trained like
    a teacher, on the true labels.
    """

    init: Literal["fresh", "visual_only"] = "fresh"
    task_weight: Annotated[float, Field(gt=0)] = 1.0


class Parts(Settings):
    """All settings of one run, each for itself, and what they mean for its networks."""

    data: DataSettings
    network: NetworkSettings = NetworkSettings()
    teachers: TeacherSettings = TeacherSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    selection: SelectionSettings = SelectionSettings()
    hallucinator: HallucinatorSettings = HallucinatorSettings()
    student: StudentSettings = StudentSettings()
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

    def further(self) -> frozenset[str]:
        """Return what terms look at of frozen teachers beside features and logits: `layers`, `masked`."""
        return frozenset(() if self.trains_teacher() else filter(self.looks_at, ("layers", "masked")))

    def trains_teacher(self) -> bool:
        """Return whether the teacher is trained together with the student."""
        return self.teachers.training == "joint"

    def missing(self) -> Missing | None:
        """Return the modalities the student fuses without seeing them; None where it does not."""
        kind = self.hallucinator.kind
        return None if kind == "none" else Missing(kind, tuple(sorted(self.data.privileged)))

    def hallucinates(self) -> bool:
        """Return whether the student learns to predict what the joint teacher sees."""
        return self.hallucinator.kind in {"linear", "relu"}

    def is_taught(self) -> bool:
        """Return whether any teacher has a part in the student."""
        return bool(self.active_terms()) or self.hallucinates()

    def first_network(self) -> Self | None:
        """Return the run whose ``student`` teacher has the student's first encoders; None if none has."""
        if self.student.init == "fresh":
            return None
        teachers = self.teachers.model_copy(update={"labels": "true"})
        return self.model_copy(update={"teachers": teachers})

    def trains_auxiliary(self) -> bool:
        """Return whether there is an auxiliary network, and it is trained together with the student."""
        return self.needs_auxiliary() and self.teachers.auxiliary == "joint"

    def frozen_networks(self) -> dict[str, tuple[str, ...]]:
        """Return the modalities of each network that is trained before the student, by name."""
        if not self.trains_teacher():
            return self.networks()
        if self.needs_auxiliary() and not self.trains_auxiliary():
            return {"privileged": network_modalities("privileged", self.data)}
        return {}


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
