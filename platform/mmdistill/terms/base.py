"""What every term is.

Axes: K lanes, B batch, D width, C outputs, M frozen teachers.
"""

import abc
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.models.lanes import LaneLinear, lane_values
from mmdistill.models.network import Outputs
from mmdistill.registry import Registry
from mmdistill.settings import Settings, Tunable

Task = Literal["classification", "regression"]


class TermSettings(Settings):
    """Settings every term has; a weight of 0 means that the term is absent.

    The range of a weight reaches from about a tenth of the task's gradient in the student to ten times it, as
    measured on digits_views with `tests/benchmarks/term_weights.py`, less far where more did harm
    (`centroid`, `competing_students`, `correlation`, `information_flow`), and contains the published
    weight if there is one on the same scale.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.01, high=10.0, log=True)] = 1.0

    def dead(self) -> frozenset[str]:
        """Return the names of the fields that change nothing as the others are set."""
        return frozenset()

    def most(self, batch_size: int) -> dict[str, int]:
        """Return the greatest values of the fields that a batch of that size limits."""
        return {}

    def least_classes(self) -> int:
        """Return the least number of classes with which these settings say anything."""
        return 2


class Labels(NamedTuple):
    """What is known of a batch: class indices value_KB or targets value_KBC, any value where not known."""

    value: Tensor
    known_KB: Tensor


class Pool(NamedTuple):
    """What every frozen teacher says about a batch, chosen or not.

    ``evidence_KBM`` is the loss by which they are compared, 0 on rows without a label.
    """

    names: tuple[str, ...]
    features_KBMD: Tensor
    logits_KBMC: Tensor
    evidence_KBM: Tensor


class Layers(NamedTuple):
    """What layers make of a batch, first to last, each [K, B, any width]; the features are not among them."""

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


class Masked(NamedTuple):
    """Logits with some modalities masked (zeros, their mean over training rows), per modality of the student.

    ``student_KBSC`` and ``teacher_KBSC`` have that modality alone, ``without_KBSC`` the teacher's others.
    """

    student_KBSC: Tensor
    teacher_KBSC: Tensor
    without_KBSC: Tensor


@dataclass(frozen=True)
class Batch:
    """One step as a term sees it.

    Attributes:
        student: features and logits of the student.
        teacher: those of the selected teacher (or of the teacher that trains along); None without one.
        auxiliary: those of the network on privileged modalities only; None without one.
        pool: all frozen teachers; None unless a term of the run needs them.
        labels: those of the labelled rows; None only where a term that needs none is looked at alone.
        rows_KB: which training rows these are.
        epoch: of the training, from 0.
        layers: of student and teacher; None unless a term of the run needs them.
        masked: what student and teacher say of single modalities; None unless a term of the run needs it.
        average: of a network whose weights are a moving average of the student's and of those of the teacher
            that trains along; None unless a term of the run needs it.
    """

    student: Outputs
    teacher: Outputs | None = None
    auxiliary: Outputs | None = None
    pool: Pool | None = None
    labels: Labels | None = None
    rows_KB: Tensor | None = None
    epoch: int = 0
    layers: Layers | None = None
    masked: Masked | None = None
    average: Outputs | None = None


class Shapes(NamedTuple):
    """What a term is built for.

    Attributes:
        student: width of the student's features.
        teacher: width of the teacher's.
        auxiliary: width of the auxiliary's.
        task: classification or regression.
        outputs: classes or targets.
        teachers: names of the frozen teachers, in the order of :class:`Pool`.
        rows: training rows, labelled or not.
        epochs: how long the student trains.
    """

    student: int
    teacher: int
    auxiliary: int
    task: Task
    outputs: int
    teachers: tuple[str, ...] = ()
    rows: int = 0
    epochs: int = 1


@dataclass(frozen=True)
class TermValue:
    """A term's unweighted value per lane, and what is worth logging about it."""

    value_K: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)


Own = TypeVar("Own", bound=TermSettings)
Unlabelled = Literal["skip", "teacher"]
Part = TypeVar("Part", Outputs, Pool, Labels, Layers, Masked, Tensor)


class AbstractTerm(nn.Module, abc.ABC, Generic[Own]):
    """A part of the objective; holds the weights that train along with the student.

    Lanes differ in the fields that declare a range; every other field is the same in all lanes. While a term
    trains nothing changes but its parameters and buffers, each with a leading lane axis, and its
    ``generators``: so lanes can be dropped, and a training that was cut off can go on.

    Attributes:
        lanes: the settings of each lane.
        shared: the settings of the first lane, for the fields that are the same in all.
        generators: one per lane if the term draws random numbers.
    """

    settings_type: ClassVar[type[TermSettings]]
    # `teacher`, `auxiliary` (trains along) or `pool` (all teachers are frozen), and beside a teacher
    # `layers`, `masked` or `average` (then there is a setting `momentum`); every batch has its labels.
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})
    # Tasks it is defined for, and the least number of classes with which it is not empty.
    tasks: ClassVar[frozenset[Task]] = frozenset({"classification", "regression"})
    least_classes: ClassVar[int] = 2
    source: ClassVar[str]
    # Fields that change nothing in regression.
    classification_only: ClassVar[frozenset[str]] = frozenset()
    # Why lanes with this term must train alone; None where they can be stacked.
    solo: ClassVar[str | None] = None

    def __init__(self, settings: Sequence[Own], shapes: Shapes, seeds: Sequence[int]) -> None:
        """Build the term.

        Args:
            settings: one per lane.
            shapes: widths of the features it will see.
            seeds: one per lane, for the term's own weights.
        """
        super().__init__()
        self.lanes = tuple(settings)
        self.shared = settings[0]
        self.task = shapes.task
        self.generators: tuple[torch.Generator, ...] = ()

    def only(self, lanes: Tensor) -> Self:
        """Return the term for some of its lanes.

        Its parameters and buffers are the same objects: they are narrowed where they are held.
        """
        chosen = lanes.tolist()
        narrowed = copy.copy(self)
        narrowed.lanes = tuple(self.lanes[k] for k in chosen)
        narrowed.generators = tuple(self.generators[k] for k in chosen if self.generators)
        return narrowed

    def per_lane(self, name: str, like: Tensor) -> Tensor:
        """Return a numeric setting as a tensor [K]."""
        return lane_values([getattr(settings, name) for settings in self.lanes], like)

    def plan(self, batch: Batch) -> Tensor | None:
        """Return the plan_KBB by which the term couples teacher (lines) and student; None if it has none."""
        return None

    @abc.abstractmethod
    def forward(self, batch: Batch) -> TermValue:
        """Return the unweighted value of each lane."""


Term = AbstractTerm[TermSettings]
TERMS: Registry[type[AbstractTerm]] = Registry("term")  # type: ignore[type-arg]


def require(given: Part | None, what: str) -> Part:
    """Return a part of the batch; if it is missing here, that is a bug that planning should have caught."""
    if given is None:
        raise ValueError(f"this term needs a {what}, and the run has none")
    return given


def frozen_teacher(batch: Batch) -> Outputs:
    """Return what the teacher says, as constants: nothing of a term's gradient reaches it."""
    return require(batch.teacher, "teacher").detach()


def frozen_pool(batch: Batch) -> Pool:
    """Return what all frozen teachers say, as constants."""
    pool = require(batch.pool, "pool")
    return Pool(pool.names, *(part.detach() for part in pool[1:]))


def classes_of(batch: Batch, unlabelled: Unlabelled) -> Labels:
    """Return the class of every row that has one.

    Args:
        batch: with labels.
        unlabelled: what becomes of rows without a label: they are skipped, or the teacher's choice is theirs.
    """
    labels = require(batch.labels, "label")
    if unlabelled == "skip":
        return labels
    choice_KB = frozen_teacher(batch).logits_KBC.argmax(dim=-1)
    return Labels(torch.where(labels.known_KB, labels.value, choice_KB), torch.ones_like(labels.known_KB))


def to_teacher_width(shapes: Shapes, seeds: Sequence[int], role: str) -> nn.Module:
    """Return a learned map of the student's features to the teacher's width; none where they are as wide."""
    if shapes.student == shapes.teacher:
        return nn.Identity()
    return LaneLinear(shapes.student, shapes.teacher, seeds, role)


def normalised(features_KBD: Tensor) -> Tensor:
    """Return the features with zero mean and unit variance over D: no trainable scale can shrink them.

    The constant that keeps a division finite is relative to a row's largest entry: beside an absolute one
    small features would come out smaller.
    """
    largest_KB1 = features_KBD.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30)
    return torch.nn.functional.layer_norm(features_KBD / largest_KB1, features_KBD.shape[-1:])
