"""Contrastive mutual information between the teacher and the student or the auxiliary (AMID)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmdistill.losses.contrastive import infonce
from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Outputs
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, require


class InformationSettings(TermSettings):
    """Symmetric in-batch InfoNCE between two learned projections."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.3
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.05, high=0.5, log=True)] = 0.1
    width: Annotated[int, Field(ge=1)] = 64
    teacher_gradient: bool = False


class _Information(AbstractTerm[InformationSettings]):
    settings_type = InformationSettings
    source = "AMID, arXiv 2306.07646, equation 6; critic inferred (InfoNCE, in-batch)"

    def _build(self, teacher: int, other: int, seeds: Sequence[int], role: str) -> None:
        self.project_teacher = LaneLinear(teacher, self.shared.width, seeds, f"{role}.teacher")
        self.project_other = LaneLinear(other, self.shared.width, seeds, f"{role}.other")

    def _contrast(self, teacher: Outputs, other_KBD: Tensor) -> TermValue:
        teacher_KBD = teacher.features_KBD if self.shared.teacher_gradient else teacher.features_KBD.detach()
        other, target = self.project_other(other_KBD), self.project_teacher(teacher_KBD)
        return TermValue(infonce(other, target, temperature=self.per_lane("temperature", other_KBD)))


@TERMS.register("mutual_information")
class MutualInformation(_Information):
    """Raise a lower bound of I(teacher; student): log B minus this loss, capped at log B."""

    def __init__(self, settings: Sequence[InformationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self._build(shapes.teacher, shapes.student, seeds, "mutual_information")

    def forward(self, batch: Batch) -> TermValue:
        """Return the InfoNCE loss of each lane."""
        return self._contrast(require(batch.teacher, "teacher"), batch.student.features_KBD)


@TERMS.register("auxiliary_information")
class AuxiliaryInformation(_Information):
    """Raise a lower bound of I(teacher; auxiliary), so that the teacher keeps what only it can see.

    The auxiliary network trains along and receives this term's gradient.
    """

    needs = frozenset({"teacher", "auxiliary"})

    def __init__(self, settings: Sequence[InformationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self._build(shapes.teacher, shapes.auxiliary, seeds, "auxiliary_information")

    def forward(self, batch: Batch) -> TermValue:
        """Return the InfoNCE loss of each lane."""
        auxiliary = require(batch.auxiliary, "auxiliary")
        return self._contrast(require(batch.teacher, "teacher"), auxiliary.features_KBD)
