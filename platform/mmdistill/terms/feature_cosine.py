"""Point-to-point distillation of features (M2PKD): one cosine between the flattened batches."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmdistill.losses.hints import pkd_cos
from mmdistill.losses.task import ccc_loss, cross_entropy
from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Outputs
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Labels, Shapes, TermSettings, TermValue, require


class FeatureCosineSettings(TermSettings):
    """1 - cos(vec teacher, vec student), times a gate on the teacher's task loss g over the labelled rows.

    ``m2pkd_code``: theta + g where g <= theta or g > 1, else 1, as the released code has it, with its theta
    of 0.2: an oddity, since a worse teacher weighs more. ``inverse``: theta / (theta + g), so that a worse
    one weighs less (inferred). The loss is 1 - CCC, or the cross entropy in nats (inferred); a batch without
    a label counts as g = 0.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.3, high=30.0, log=True)] = 1.0
    gate: Literal["none", "m2pkd_code", "inverse"] = "none"
    theta: Annotated[float, Field(gt=0), Tunable(low=0.05, high=1.0, log=True)] = 0.2

    def dead(self) -> frozenset[str]:
        """Without a gate there is no threshold."""
        return frozenset({"theta"} if self.gate == "none" else ())


@TERMS.register("feature_cosine")
class FeatureCosine(AbstractTerm[FeatureCosineSettings]):
    """Turn the student's features towards the teacher's, sample by sample.

    Features of another width than the teacher's go through a learned linear map first (inferred). The code
    takes the gate's share off the task loss (1 - gate, even below 0); here the task keeps its weight.
    """

    settings_type = FeatureCosineSettings
    source = "M2PKD, Aslam et al. 2023 (CVPRW); MMPKD mmpkd.py; MT-PKDOT biovid_pkd.py"

    def __init__(
        self, settings: Sequence[FeatureCosineSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        same = shapes.student == shapes.teacher
        self.map = None if same else LaneLinear(shapes.student, shapes.teacher, seeds, "feature_cosine.map")

    def forward(self, batch: Batch) -> TermValue:
        """Return the gated cosine distance of each lane."""
        teacher = require(batch.teacher, "teacher").detach()
        student_KBD = batch.student.features_KBD
        student_KBD = student_KBD if self.map is None else self.map(student_KBD)
        value_K = pkd_cos(student_KBD, teacher.features_KBD)
        if self.shared.gate == "none":
            return TermValue(value_K)
        gate_K = self._gate(teacher, require(batch.labels, "label"))
        return TermValue(gate_K * value_K, {"gate": gate_K})

    def _gate(self, teacher: Outputs, labels: Labels) -> Tensor:
        task = ccc_loss if self.task == "regression" else cross_entropy
        loss_K = task(teacher.logits_KBC, labels.value, labels.known_KB)
        theta_K = self.per_lane("theta", loss_K)
        if self.shared.gate == "inverse":
            return theta_K / (theta_K + loss_K)
        return torch.where((loss_K <= theta_K) | (loss_K > 1), theta_K + loss_K, 1.0)
