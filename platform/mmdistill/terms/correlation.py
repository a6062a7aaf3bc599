"""Correlation congruence (Peng et al., 2019), in the three forms that go by this name."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from mmdistill.losses.base import unit_rows
from mmdistill.losses.correlation import cc, cckd
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class CorrelationSettings(TermSettings):
    """Learned embeddings of neighbours in the batch, or distance between two correlation matrices."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.003, high=3.0, log=True)] = 0.02
    kind: Literal["embedded", "bilinear", "gaussian"] = "embedded"
    width: Annotated[int, Field(ge=1)] = 128
    gamma: Annotated[float, Field(gt=0), Tunable(low=0.1, high=1.0, log=True)] = 0.4
    order: Annotated[int, Field(ge=1)] = 2

    def dead(self) -> frozenset[str]:
        """Only the Gaussian kernel has a width and a series, only embeddings have a width."""
        dead = set() if self.kind == "embedded" else {"width"}
        return frozenset(dead if self.kind == "gaussian" else dead | {"gamma", "order"})


@TERMS.register("correlation")
class Correlation(AbstractTerm[CorrelationSettings]):
    """Let samples correlate with each other as for the teacher.

    ``embedded`` is RepDistiller's: sum_d |delta_i| |delta_(i+1)| of learned embeddings of both. It pairs each
    sample with the next one, so that it depends on the order of the batch. ``bilinear`` and ``gaussian``
    are torchdistill's: the distance between the matrices of correlations of features, here normalised to
    length 1 in place of its embeddings (inferred).
    """

    settings_type = CorrelationSettings
    source = "Peng et al. 2019; RepDistiller distiller_zoo/CC.py; torchdistill losses/mid_level.py CCKDLoss"

    def __init__(self, settings: Sequence[CorrelationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        if self.shared.kind == "embedded":
            self.embed_student = LaneLinear(shapes.student, self.shared.width, seeds, "correlation.student")
            self.embed_teacher = LaneLinear(shapes.teacher, self.shared.width, seeds, "correlation.teacher")

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane."""
        student, teacher = batch.student.features_KBD, frozen_teacher(batch).features_KBD
        kind = self.shared.kind
        if kind == "embedded":
            return TermValue(cc(self.embed_student(student), self.embed_teacher(teacher)))
        gamma = self.per_lane("gamma", student)
        value_K = cckd(
            unit_rows(student), unit_rows(teacher), kernel=kind, gamma=gamma, order=self.shared.order
        )
        return TermValue(value_K)
