"""Pseudo-labels of unimodal networks (unseen modality interaction, Zhang et al., 2023)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_pool


class UnimodalPseudoLabelsSettings(TermSettings):
    """T^2 KL(teacher || student) of every teacher, averaged over teachers."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 1.0


@TERMS.register("unimodal_pseudo_labels")
class UnimodalPseudoLabels(AbstractTerm[UnimodalPseudoLabelsSettings]):
    """Follow the class probabilities of all teachers, on every row.

    They are pseudo-labels of single modalities where every teacher of the pool has one. In regression they
    are predictions, and the squared error takes the place of the divergence (inferred).
    """

    settings_type = UnimodalPseudoLabelsSettings
    needs = frozenset({"pool"})
    classification_only = frozenset({"temperature"})
    source = "Zhang et al. 2023; Unseen-Modality-Interaction train.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the mean divergence of each lane."""
        teachers_KMBC = frozen_pool(batch).logits_KBMC.transpose(1, 2)
        student_KMBC = batch.student.logits_KBC[:, None].expand_as(teachers_KMBC)
        if self.task == "regression":
            return TermValue(prediction_mse(student_KMBC, teachers_KMBC).mean(dim=1))
        temperature_K1 = self.per_lane("temperature", student_KMBC)[:, None]
        return TermValue(kd(student_KMBC, teachers_KMBC, temperature=temperature_K1).mean(dim=1))
