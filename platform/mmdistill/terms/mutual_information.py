"""Contrastive mutual information between the teacher and the student or the auxiliary (AMID).

Axes: K lanes, B batch, D width.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.losses.base import unit_rows
from mmdistill.losses.contrastive import infonce
from mmdistill.losses.noise_contrastive import nce, normaliser
from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Outputs
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Labels, Shapes, TermSettings, TermValue, require


class InformationSettings(TermSettings):
    """A contrastive critic between two learned projections; all choices are inferred.

    ``critic``: symmetric ``infonce``, or ``nce`` as in CRD. ``normaliser`` of ``nce``: the mean score of the
    first batch for ever, or that times a learned factor. The negatives are the other rows of the batch;
    ``exclude_same_class`` leaves out those known to be of the same class. (The term
    ``contrastive`` has a memory bank.)
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.3
    critic: Literal["infonce", "nce"] = "infonce"
    normaliser: Literal["first_batch", "learned"] = "first_batch"
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.05, high=0.5, log=True)] = 0.1
    width: Annotated[int, Field(ge=1)] = 64
    exclude_same_class: bool = False
    teacher_gradient: bool = False

    def dead(self) -> frozenset[str]:
        """Return the normaliser where the critic needs none."""
        return frozenset({"normaliser"} if self.critic == "infonce" else ())


class _Information(AbstractTerm[InformationSettings]):
    settings_type = InformationSettings
    classification_only: ClassVar[frozenset[str]] = frozenset({"exclude_same_class"})
    source = (
        "AMID, arXiv 2306.07646, equation 6; critics inferred: InfoNCE (van den Oord et al. 2018), "
        "NCE with a constant normaliser (CRD, Tian et al. 2020)"
    )
    normaliser_K: Tensor

    def _build(self, teacher: int, other: int, seeds: Sequence[int], role: str) -> None:
        self.project_teacher = LaneLinear(teacher, self.shared.width, seeds, f"{role}.teacher")
        self.project_other = LaneLinear(other, self.shared.width, seeds, f"{role}.other")
        if self.shared.critic == "nce":
            # 0 until the first batch has been seen.
            self.register_buffer("normaliser_K", torch.zeros(len(seeds)))
            if self.shared.normaliser == "learned":
                self.log_factor_K = nn.Parameter(torch.zeros(len(seeds)))

    def _contrast(self, teacher: Outputs, other_KBD: Tensor, labels: Labels | None) -> TermValue:
        teacher_KBD = teacher.features_KBD if self.shared.teacher_gradient else teacher.features_KBD.detach()
        other, target = self.project_other(other_KBD), self.project_teacher(teacher_KBD)
        temperature_K, rows = self.per_lane("temperature", other_KBD), other_KBD.shape[1]
        classes_KB = self._classes(labels)
        details: dict[str, Tensor] = {}
        if self.shared.critic == "infonce":
            value_K = infonce(other, target, temperature=temperature_K, labels_LB=classes_KB)
        else:
            Z_K = self._normaliser(other, target, temperature_K)
            details["normaliser"], rows = Z_K.detach(), rows - 1
            # Z is the mean score times the size of the data set, which therefore drops out.
            value_K = nce(other, target, n_data=1, Z=Z_K, temperature=temperature_K, labels_LB=classes_KB)
        # With negatives of the own class left out it is no bound of I, and must not be called one.
        name = "bound" if classes_KB is None else "not_a_bound"
        return TermValue(value_K, details | {name: math.log(rows) - value_K.detach()})

    def _classes(self, labels: Labels | None) -> Tensor | None:
        """Return classes whose members are no negatives of each other; a row without a label is alone."""
        if not self.shared.exclude_same_class or self.task == "regression":
            return None
        value_KB, known_KB = require(labels, "label")
        alone_B = -1 - torch.arange(known_KB.shape[1], device=known_KB.device)
        return torch.where(known_KB, value_KB, alone_B)

    def _normaliser(self, other_KBD: Tensor, target_KBD: Tensor, temperature_K: Tensor) -> Tensor:
        similarity_KBB = unit_rows(other_KBD) @ unit_rows(target_KBD).mT
        first_K = normaliser(similarity_KBB, n_data=1, temperature=temperature_K)
        self.normaliser_K = torch.where(self.normaliser_K > 0, self.normaliser_K, first_K)
        if self.shared.normaliser == "learned":
            return self.normaliser_K * self.log_factor_K.exp()
        return self.normaliser_K


@TERMS.register("mutual_information")
class MutualInformation(_Information):
    """Raise a lower bound of I(teacher; student).

    The detail ``bound`` is that bound in nats: log of the rows of a batch (less one for ``nce``) minus the
    loss, so capped at that log. It is not the mutual information.
    """

    def __init__(self, settings: Sequence[InformationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self._build(shapes.teacher, shapes.student, seeds, "mutual_information")

    def forward(self, batch: Batch) -> TermValue:
        """Return the contrastive loss of each lane."""
        return self._contrast(require(batch.teacher, "teacher"), batch.student.features_KBD, batch.labels)


@TERMS.register("auxiliary_information")
class AuxiliaryInformation(_Information):
    """Raise a lower bound of I(teacher; auxiliary), so that the teacher keeps what only it can see.

    An auxiliary network that trains along receives this term's gradient too.
    """

    needs = frozenset({"teacher", "auxiliary"})

    def __init__(self, settings: Sequence[InformationSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self._build(shapes.teacher, shapes.auxiliary, seeds, "auxiliary_information")

    def forward(self, batch: Batch) -> TermValue:
        """Return the contrastive loss of each lane."""
        auxiliary = require(batch.auxiliary, "auxiliary")
        return self._contrast(require(batch.teacher, "teacher"), auxiliary.features_KBD, batch.labels)
