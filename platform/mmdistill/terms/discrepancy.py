"""Maximum mean discrepancy between the two sets of features (Gretton et al., 2012)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mmdistill.losses.discrepancy import mmd
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    frozen_teacher,
    to_teacher_width,
)


class DiscrepancySettings(TermSettings):
    """Mean embedding distance under a sum of five Gaussian kernels around the mean squared distance."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0


@TERMS.register("discrepancy")
class Discrepancy(AbstractTerm[DiscrepancySettings]):
    """Let the student's features be distributed as the teacher's; which sample is where does not matter."""

    settings_type = DiscrepancySettings
    source = "Gretton et al. 2012; MT-PKDOT mmd_loss.py (there for alignment)"

    def __init__(self, settings: Sequence[DiscrepancySettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self.mapped = to_teacher_width(shapes, seeds, "discrepancy.map")

    def forward(self, batch: Batch) -> TermValue:
        """Return the discrepancy of each lane."""
        student = self.mapped(batch.student.features_KBD)
        return TermValue(mmd(student, frozen_teacher(batch).features_KBD))
