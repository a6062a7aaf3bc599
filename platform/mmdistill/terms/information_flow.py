"""Information flow through the layers (heterogeneous distillation, Passalis, Tzelepi and Tefas, 2020)."""

from typing import Annotated

import torch
from pydantic import Field

from mmdistill.losses.similarity import ifd
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    TermSettings,
    TermValue,
    frozen_teacher,
    require,
)


class InformationFlowSettings(TermSettings):
    """Divergence of pairwise similarities at the features, and w0 rho^epoch times that of layers below."""

    weight: Annotated[float, Field(ge=0), Tunable(low=1.0, high=300.0, log=True)] = 10.0
    w0: Annotated[float, Field(ge=0), Tunable(low=1.0, high=100.0, log=True)] = 100.0
    rho: Annotated[float, Field(ge=0, le=1), Tunable(low=0.3, high=0.95)] = 0.7


@TERMS.register("information_flow")
class InformationFlow(AbstractTerm[InformationFlowSettings]):
    """Let similarities between samples be the teacher's at every layer, below the features only at first.

    Early in training, in its critical period, the layers below weigh ``w0``; then less by ``rho`` each epoch.
    Networks of one run are equally deep, so that layer meets layer; of a teacher on several modalities the
    layers of all encoders stand side by side (inferred).
    """

    settings_type = InformationFlowSettings
    needs = frozenset({"teacher", "layers"})
    source = "Passalis et al. 2020; pkth nn/pkt_transfer.py prob_loss, cifar10/exp2_proposed.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergences of each lane, weighted and added."""
        value_K = ifd(batch.student.features_KBD, frozen_teacher(batch).features_KBD)
        layers = require(batch.layers, "layer")
        below_K = torch.zeros_like(value_K)
        for student, teacher in zip(*layers, strict=True):
            below_K = below_K + ifd(student, teacher.detach())
        early_K = self.per_lane("w0", value_K) * self.per_lane("rho", value_K) ** batch.epoch
        return TermValue(value_K + early_K * below_K, {"below": below_K.detach()})
