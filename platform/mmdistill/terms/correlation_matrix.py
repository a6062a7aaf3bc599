"""Correlation congruence (Peng et al., 2019), as torchdistill codes it."""

from typing import Annotated, Literal

from pydantic import Field

from mmdistill.losses.base import unit_rows
from mmdistill.losses.correlation import cckd
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class CorrelationMatrixSettings(TermSettings):
    """Distance between the two matrices of correlations within a batch, over B^2."""

    weight: Annotated[float, Field(ge=0), Tunable(low=30.0, high=3000.0, log=True)] = 300.0
    kernel: Literal["gaussian", "bilinear"] = "gaussian"
    gamma: Annotated[float, Field(gt=0), Tunable(low=0.1, high=1.0, log=True)] = 0.4
    order: Annotated[int, Field(ge=1)] = 2

    def dead(self) -> frozenset[str]:
        """Only the Gaussian kernel has a width and a series."""
        return frozenset({"gamma", "order"} if self.kernel == "bilinear" else ())


@TERMS.register("correlation_matrix")
class CorrelationMatrix(AbstractTerm[CorrelationMatrixSettings]):
    """Let pairs of samples correlate as for the teacher, by products or by the series of a Gaussian kernel.

    Features are normalised to length 1 in place of torchdistill's learned embeddings (inferred): those of the
    teacher, trained on the same loss, could agree with the student's by saying nothing.
    """

    settings_type = CorrelationMatrixSettings
    source = "Peng et al. 2019, equations 7 and 9; torchdistill torchdistill/losses/mid_level.py CCKDLoss"

    def forward(self, batch: Batch) -> TermValue:
        """Return the distance of each lane."""
        student, teacher = (unit_rows(found.features_KBD) for found in (batch.student, frozen_teacher(batch)))
        gamma = self.per_lane("gamma", student)
        kernel, order = self.shared.kernel, self.shared.order
        return TermValue(cckd(student, teacher, kernel=kernel, gamma=gamma, order=order))
