"""Variational information distillation (Ahn et al., 2019)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.losses.gaussian import LEAST_VARIANCE, vid
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class VariationalInformationSettings(TermSettings):
    """Negative log-likelihood of the teacher's features under a Gaussian around a map of the student's."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.05, high=5.0, log=True)] = 1.0
    depth: Annotated[int, Field(ge=1, le=8)] = 3


class Gaussian(nn.Module):
    """A density of the teacher's features given the student's: layers give its mean.

    The variance of each feature is a parameter of its own and does not depend on the student.
    """

    def __init__(
        self, widths: tuple[int, int], depth: int, variance: float, seeds: Sequence[int], role: str
    ) -> None:
        """Build K lanes.

        Args:
            widths: of the student's and the teacher's features; layers between are as wide as the teacher's.
            depth: number of layers, >= 1.
            variance: at first, above 1e-5.
            seeds: one per lane.
            role: what it is for.
        """
        super().__init__()
        sizes = [widths[0]] + [widths[1]] * depth
        self.layers = nn.ModuleList(
            LaneLinear(before, after, seeds, f"{role}.mean.{n}")
            for n, (before, after) in enumerate(pairwise(sizes))
        )
        rho = math.log(math.expm1(variance - LEAST_VARIANCE))
        self.rho_KD = nn.Parameter(torch.full((len(seeds), widths[1]), rho))

    def forward(self, student_KBD: Tensor, teacher_KBD: Tensor) -> Tensor:
        """Return the negative log-likelihood of each lane per feature, up to a constant, in nats."""
        mean_KBD = self.layers[0](student_KBD)
        for layer in self.layers[1:]:
            mean_KBD = layer(torch.relu(mean_KBD))
        return vid(mean_KBD, teacher_KBD, rho=self.rho_KD)


@TERMS.register("variational_information")
class VariationalInformation(AbstractTerm[VariationalInformationSettings]):
    """Raise a lower bound of the information the student's features have about the teacher's."""

    settings_type = VariationalInformationSettings
    source = "Ahn et al. 2019, equation 5; RepDistiller distiller_zoo/VID.py"

    def __init__(
        self, settings: Sequence[VariationalInformationSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        widths = (shapes.student, shapes.teacher)
        # The reference code begins with a variance of 5.
        self.density = Gaussian(widths, self.shared.depth, 5.0, seeds, "variational_information")

    def forward(self, batch: Batch) -> TermValue:
        """Return the bound of each lane, up to a constant; may be negative."""
        return TermValue(self.density(batch.student.features_KBD, frozen_teacher(batch).features_KBD))
