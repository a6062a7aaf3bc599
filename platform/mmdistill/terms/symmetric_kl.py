"""Symmetric Kullback-Leibler divergence between class probabilities (Chen et al., 2021)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.softened import skl
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class SymmetricKLSettings(TermSettings):
    """KL(p || q) + KL(q || p) without a temperature."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.05, high=5.0, log=True)] = 0.5


@TERMS.register("symmetric_kl")
class SymmetricKL(AbstractTerm[SymmetricKLSettings]):
    """Match the teacher's class probabilities in both directions."""

    settings_type = SymmetricKLSettings
    tasks = frozenset({"classification"})
    source = "Chen et al. 2021 (CCL); yanbeic/CCL loss/jsd_loss.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane."""
        return TermValue(skl(batch.student.logits_KBC, frozen_teacher(batch).logits_KBC))
