"""Correlation congruence (Peng et al., 2019), as RepDistiller codes it."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mmdistill.losses.correlation import cc
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class CorrelationSettings(TermSettings):
    """Differences between learned embeddings, each multiplied with that of the next sample."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.001, high=0.1, log=True)] = 0.02
    width: Annotated[int, Field(ge=1)] = 128


@TERMS.register("correlation")
class Correlation(AbstractTerm[CorrelationSettings]):
    """Let embeddings differ from the teacher's in no way that the next sample's differ, too.

    sum_d |delta_i| |delta_(i+1)|: it pairs each sample with the next one, so that it depends on the order of
    the batch. Both embeddings are trained on it, as in the reference code, and may agree by saying little.
    The distance between matrices of correlations is the term `correlation_matrix`.
    """

    settings_type = CorrelationSettings
    source = "Peng et al. 2019; RepDistiller distiller_zoo/CC.py"

    def __init__(self, settings: Sequence[CorrelationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self.embed_student = LaneLinear(shapes.student, self.shared.width, seeds, "correlation.student")
        self.embed_teacher = LaneLinear(shapes.teacher, self.shared.width, seeds, "correlation.teacher")

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane."""
        student, teacher = batch.student.features_KBD, frozen_teacher(batch).features_KBD
        return TermValue(cc(self.embed_student(student), self.embed_teacher(teacher)))
