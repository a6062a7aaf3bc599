"""Contrastive mutual information between the teacher and the student or the auxiliary (AMID).

Axes: K lanes, B batch, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.losses.contrastive import infonce, log_mean_score, nce
from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Outputs
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Labels, Shapes, TermSettings, TermValue, require

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class InformationSettings(TermSettings):
    """A contrastive critic between two learned projections; all choices are inferred.

    ``critic``: symmetric ``infonce``, or ``nce`` as in CRD. ``normaliser`` of ``nce``: the mean score of the
    first batch for ever, or that times a learned factor. The negatives are the other rows of the batch;
    ``exclude_same_class`` leaves out those known to be of the same class.
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
    log_normaliser_K: Tensor

    def _build(self, teacher: int, other: int, seeds: Sequence[int], role: str) -> None:
        self.project_teacher = LaneLinear(teacher, self.shared.width, seeds, f"{role}.teacher")
        self.project_other = LaneLinear(other, self.shared.width, seeds, f"{role}.other")
        if self.shared.critic == "nce":
            # Not a number until the first batch was seen.
            self.register_buffer("log_normaliser_K", torch.full((len(seeds),), math.nan))
            if self.shared.normaliser == "learned":
                self.shift_K = nn.Parameter(torch.zeros(len(seeds)))

    def _contrast(self, teacher: Outputs, other_KBD: Tensor, labels: Labels | None) -> TermValue:
        teacher_KBD = teacher.features_KBD if self.shared.teacher_gradient else teacher.features_KBD.detach()
        other, target = self.project_other(other_KBD), self.project_teacher(teacher_KBD)
        negatives_KBB = self._negatives(labels)
        temperature_K, rows = self.per_lane("temperature", other_KBD), other_KBD.shape[1]
        details: dict[str, Tensor] = {}
        if self.shared.critic == "infonce":
            value_K = infonce(other, target, temperature=temperature_K, negatives_LBB=negatives_KBB)
        else:
            log_K = self._log_normaliser(other, target, temperature_K)
            details["log_normaliser"], rows = log_K.detach(), rows - 1
            value_K = nce(
                other, target, temperature=temperature_K, log_normaliser=log_K, negatives_LBB=negatives_KBB
            )
        # With negatives of the own class left out it is no bound of I, and must not be called one.
        name = "bound" if negatives_KBB is None else "not_a_bound"
        return TermValue(value_K, details | {name: math.log(rows) - value_K.detach()})

    def _negatives(self, labels: Labels | None) -> Tensor | None:
        if not self.shared.exclude_same_class or self.task == "regression":
            return None
        value_KB, known_KB = require(labels, "label")
        is_known_KBB = known_KB[:, :, None] & known_KB[:, None, :]
        return ~((value_KB[:, :, None] == value_KB[:, None, :]) & is_known_KBB)

    @torch.no_grad()
    def _freeze(self, other_KBD: Tensor, target_KBD: Tensor, temperature_K: Tensor) -> None:
        fresh_K = log_mean_score(other_KBD, target_KBD, temperature_K)
        held_K = self.log_normaliser_K
        self.log_normaliser_K = torch.where(held_K.isnan(), fresh_K, held_K)

    def _log_normaliser(self, other_KBD: Tensor, target_KBD: Tensor, temperature_K: Tensor) -> Tensor:
        self._freeze(other_KBD, target_KBD, temperature_K)
        if self.shared.normaliser == "learned":
            return self.log_normaliser_K + self.shift_K
        return self.log_normaliser_K


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
