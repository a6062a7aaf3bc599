"""Modality-specific distillation (MSD, Jin et al., 2021)."""

from typing import Annotated, Literal

from pydantic import Field

from mmdistill.losses.experts import msd, saliency_weights
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


class ModalitySpecificSettings(TermSettings):
    """T^2 KL(teacher || student) with each of the student's modalities alone, weighted by modality."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 4.0
    weights: Literal["constant", "saliency"] = "constant"
    saliency: Literal["kl", "l1"] = "kl"
    scope: Literal["sample", "population"] = "sample"

    def dead(self) -> frozenset[str]:
        """Constant weights ask for no saliency."""
        return frozenset({"saliency", "scope"} if self.weights == "constant" else ())


@TERMS.register("modality_specific")
class ModalitySpecific(AbstractTerm[ModalitySpecificSettings]):
    """Say of every modality alone what the teacher says of it alone.

    The other modalities are masked by their mean. A modality weighs the same as every other, or as much as
    the teacher's probabilities move when it is left out, in each row or averaged over the batch. With one
    modality the student sees nothing else: then only the teacher is masked.
    """

    settings_type = ModalitySpecificSettings
    needs = frozenset({"teacher", "masked"})
    tasks = frozenset({"classification"})
    source = "Jin et al. 2021 (2101.01881), first page; formula from memory"

    def forward(self, batch: Batch) -> TermValue:
        """Return the weighted divergence of each lane."""
        full = frozen_teacher(batch).logits_KBC
        masked = require(batch.masked, "masked input")
        student, alone, without = (logits_KBSC.transpose(1, 2) for logits_KBSC in masked)
        weights_KSB = None
        if self.shared.weights == "saliency":
            weights_KSB = saliency_weights(
                full, without, saliency=self.shared.saliency, scope=self.shared.scope
            )
        temperature = self.per_lane("temperature", full)
        return TermValue(msd(student, alone.detach(), weights_LMB=weights_KSB, temperature=temperature))
