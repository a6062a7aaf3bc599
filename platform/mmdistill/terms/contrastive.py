"""Contrastive representation distillation (Tian, Krishnan and Isola, 2020), from a batch or a memory bank.

Axes: K lanes, B batch, D width, N training rows, M negatives.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmdistill.losses.base import per_lane, unit_rows
from mmdistill.losses.contrastive import infonce
from mmdistill.losses.noise_contrastive import crd_contrast, normaliser
from mmdistill.models.lanes import LaneLinear
from mmdistill.randomness import derive_seed
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    frozen_teacher,
    require,
)


class ContrastiveSettings(TermSettings):
    """InfoNCE among the rows of a batch, or CRD's contrast with rows of a memory bank."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.8
    negatives: Literal["batch", "bank"] = "batch"
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.05, high=0.5, log=True)] = 0.07
    width: Annotated[int, Field(ge=1)] = 128
    count: Annotated[int, Field(ge=1)] = 1024
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def dead(self) -> frozenset[str]:
        """A batch has no bank: its negatives are its other rows."""
        return frozenset({"count", "momentum"} if self.negatives == "batch" else ())


@TERMS.register("contrastive")
class Contrastive(AbstractTerm[ContrastiveSettings]):
    """Let the student's embedding of a sample tell the teacher's of that sample from those of others.

    Both embeddings are linear and trained. ``bank`` remembers the last embeddings of all training rows (a
    running mean), contrasts each sample with ``count`` other rows drawn at random, of any class, and divides
    the scores by constants that the first batch gives: it depends on the order of batches by definition.
    Two vectors per training row and lane are held, and copied in every step.
    """

    settings_type = ContrastiveSettings
    source = "Tian et al. 2020, equations 17 to 19; RepDistiller crd/criterion.py and crd/memory.py"
    bank_student_KND: Tensor
    bank_teacher_KND: Tensor
    normaliser_student_K: Tensor
    normaliser_teacher_K: Tensor

    def __init__(self, settings: Sequence[ContrastiveSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        width = self.shared.width
        self.embed_student = LaneLinear(shapes.student, width, seeds, "contrastive.student")
        self.embed_teacher = LaneLinear(shapes.teacher, width, seeds, "contrastive.teacher")
        if self.shared.negatives == "bank":
            self.generators = tuple(_generator(seed, "negatives") for seed in seeds)
            for side in ("student", "teacher"):
                drawn = [_first_bank(shapes.rows, width, _generator(seed, f"bank {side}")) for seed in seeds]
                self.register_buffer(f"bank_{side}_KND", torch.stack(drawn))
                # 0 until the first batch has been seen.
                self.register_buffer(f"normaliser_{side}_K", torch.zeros(len(seeds)))

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane, both directions added for a bank and averaged for a batch."""
        teacher = unit_rows(self.embed_teacher(frozen_teacher(batch).features_KBD))
        student = unit_rows(self.embed_student(batch.student.features_KBD))
        if self.shared.negatives == "batch":
            return TermValue(infonce(student, teacher, temperature=self.per_lane("temperature", student)))
        rows_KB = require(batch.rows_KB, "row")
        rows_KBM = torch.cat([rows_KB[..., None], self._negatives(rows_KB)], dim=2)
        value_K = self._contrast(student, "teacher", rows_KBM) + self._contrast(teacher, "student", rows_KBM)
        self._remember(student, "student", rows_KB)
        self._remember(teacher, "teacher", rows_KB)
        return TermValue(value_K)

    def _negatives(self, rows_KB: Tensor) -> Tensor:
        """Draw training rows other than each row itself."""
        rows = self.bank_student_KND.shape[1]
        shape = (rows_KB.shape[1], self.shared.count)
        steps = [torch.randint(1, rows, shape, generator=generator) for generator in self.generators]
        return (rows_KB[..., None] + torch.stack(steps).to(rows_KB.device)) % rows

    def _contrast(self, embedded_KBD: Tensor, other: str, rows_KBM: Tensor) -> Tensor:
        """Return the contrast of embeddings of one side with the bank of the other."""
        bank_KND: Tensor = getattr(self, f"bank_{other}_KND")
        temperature_K, rows = self.per_lane("temperature", embedded_KBD), bank_KND.shape[1]
        # All products and then some of them: gathering the bank's rows would copy B x M vectors.
        similarity_KBM = (embedded_KBD @ bank_KND.mT).gather(2, rows_KBM)
        held_K = getattr(self, f"normaliser_{other}_K")
        first_K = normaliser(similarity_KBM, n_data=rows, temperature=temperature_K)
        Z_K = torch.where(held_K > 0, held_K, first_K)
        setattr(self, f"normaliser_{other}_K", Z_K)
        scores_KBM = (similarity_KBM / per_lane(temperature_K, similarity_KBM, trailing=2)).exp()
        return crd_contrast(scores_KBM / per_lane(Z_K, similarity_KBM, trailing=2), n_data=rows)

    @torch.no_grad()
    def _remember(self, embedded_KBD: Tensor, side: str, rows_KB: Tensor) -> None:
        # A copy, because the gradient of this step still needs the bank as it was.
        bank_KND: Tensor = getattr(self, f"bank_{side}_KND").clone()
        lanes_K1 = torch.arange(len(rows_KB), device=rows_KB.device)[:, None]
        momentum = self.shared.momentum
        mixed_KBD = momentum * bank_KND[lanes_K1, rows_KB] + (1 - momentum) * embedded_KBD
        bank_KND[lanes_K1, rows_KB] = unit_rows(mixed_KBD)
        setattr(self, f"bank_{side}_KND", bank_KND)


def _generator(seed: int, role: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "contrastive", role))


def _first_bank(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return random directions [N, D], uniform in each entry as in the reference code."""
    return unit_rows(torch.empty(rows, width).uniform_(-1, 1, generator=generator))
