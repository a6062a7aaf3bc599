"""Conditional entropy of the teacher given the student, in its Gaussian form (AMID's third term)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmdistill.losses.gaussian import vid
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    normalised,
    require,
)

# softplus(rho) + 1e-5 = 1: unit variance, the variance of the layer-normalised target.
UNIT_VARIANCE_RHO = 0.5413


class ConditionalEntropySettings(TermSettings):
    """Negative log-likelihood of the teacher's features under a Gaussian around a map of the student's."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.3
    teacher_gradient: bool = False


@TERMS.register("conditional_entropy")
class ConditionalEntropy(AbstractTerm[ConditionalEntropySettings]):
    """Lower an upper bound of H(teacher | student).

    The teacher's features enter through a layer norm without parameters: the differential entropy of
    features that may shrink falls without limit. The paper's adversarial form comes later.
    """

    settings_type = ConditionalEntropySettings
    source = "AMID, arXiv 2306.07646, equation 6; Gaussian form as VID (Ahn et al. 2019), inferred"

    def __init__(
        self, settings: Sequence[ConditionalEntropySettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.mean = LaneLinear(shapes.student, shapes.teacher, seeds, "conditional_entropy.mean")
        self.rho_KD = nn.Parameter(torch.full((len(seeds), shapes.teacher), UNIT_VARIANCE_RHO))

    def forward(self, batch: Batch) -> TermValue:
        """Return the bound of each lane, up to a constant."""
        teacher = normalised(require(batch.teacher, "teacher").features_KBD)
        target = teacher if self.shared.teacher_gradient else teacher.detach()
        return TermValue(vid(self.mean(batch.student.features_KBD), target, rho=self.rho_KD))
