"""Variational information distillation (Ahn et al., 2019)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmdistill.losses.gaussian import FIRST_RHO, vid
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class VariationalInformationSettings(TermSettings):
    """Negative log-likelihood of the teacher's features under a Gaussian around a map of the student's."""

    weight: Annotated[float, Field(ge=0), Tunable(low=1.0, high=300.0, log=True)] = 1.0
    depth: Annotated[int, Field(ge=1, le=8)] = 3


@TERMS.register("variational_information")
class VariationalInformation(AbstractTerm[VariationalInformationSettings]):
    """Raise a lower bound of the information the student's features have about the teacher's.

    The mean is given by ``depth`` linear layers with ReLU between, as wide as the teacher's features; the
    variance of each feature is a parameter of its own and does not depend on the student.
    """

    settings_type = VariationalInformationSettings
    source = "Ahn et al. 2019, equation 5; RepDistiller distiller_zoo/VID.py"

    def __init__(
        self, settings: Sequence[VariationalInformationSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        widths = [shapes.student] + [shapes.teacher] * self.shared.depth
        self.mean = nn.ModuleList(
            LaneLinear(before, after, seeds, f"variational_information.mean.{n}")
            for n, (before, after) in enumerate(pairwise(widths))
        )
        self.rho_KD = nn.Parameter(torch.full((len(seeds), shapes.teacher), FIRST_RHO))

    def forward(self, batch: Batch) -> TermValue:
        """Return the bound of each lane per feature, up to a constant, in nats; may be negative."""
        first, *others = self.mean
        mean_KBD = first(batch.student.features_KBD)
        for layer in others:
            mean_KBD = layer(torch.relu(mean_KBD))
        return TermValue(vid(mean_KBD, frozen_teacher(batch).features_KBD, rho=self.rho_KD))
