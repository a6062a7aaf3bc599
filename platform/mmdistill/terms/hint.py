"""Hints: a learned map of the student's features to the teacher's (FitNets, Romero et al., 2015)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mmdistill.losses.hints import fitnet
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class HintSettings(TermSettings):
    """Mean squared error between the mapped features and the teacher's."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=100.0, log=True)] = 1.0


@TERMS.register("hint")
class Hint(AbstractTerm[HintSettings]):
    """Let a linear map, which trains along, find the teacher's features in the student's."""

    settings_type = HintSettings
    source = "Romero et al. 2015, equation 3; RepDistiller distiller_zoo/FitNet.py"

    def __init__(self, settings: Sequence[HintSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self.regressor = LaneLinear(shapes.student, shapes.teacher, seeds, "hint.regressor")

    def forward(self, batch: Batch) -> TermValue:
        """Return the error of each lane."""
        return TermValue(
            fitnet(self.regressor(batch.student.features_KBD), frozen_teacher(batch).features_KBD)
        )
