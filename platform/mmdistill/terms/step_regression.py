"""Stepwise distillation from classes to numbers (VideoAdviser, 2023).

Axes: K lanes, B batch, D width, C classes (bins), T targets.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmdistill.losses.regression import Distance, step_regression
from mmdistill.losses.task import cross_entropy
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, require


class StepRegressionSettings(TermSettings):
    """Distance of the teacher's expected class value to its prediction, and of that to the student's.

    ``low`` and ``high`` are the ends of the targets, in standard deviations from their mean.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 1.0
    inside: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    distance: Distance = "mse"
    bins: Annotated[int, Field(ge=2)] = 7
    low: float = -2.0
    high: float = 2.0
    teacher_gradient: bool = False

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, but is {self.low:g} against {self.high:g}")
        return self


@TERMS.register("step_regression")
class StepRegression(AbstractTerm[StepRegressionSettings]):
    """From the teacher's classes to its prediction, and from that to the student's.

    Teachers of a regression have no classes: a linear head on the teacher's features tells in which of
    ``bins`` equal bins from ``low`` to ``high`` each target lies, and learns it on the labelled rows; targets
    beyond are in the outer bins, a class stands for the middle of its bin (all inferred). Steps that a frozen
    teacher cannot follow teach that head only: they are meant for one that trains along, with
    ``teacher_gradient``.
    """

    settings_type = StepRegressionSettings
    tasks = frozenset({"regression"})
    source = "VideoAdviser (2309.15494), page 1; distance, weights and class head inferred"

    def __init__(
        self, settings: Sequence[StepRegressionSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.head = LaneLinear(
            shapes.teacher, shapes.outputs * self.shared.bins, seeds, "step_regression.head"
        )

    def forward(self, batch: Batch) -> TermValue:
        """Return the steps of each lane and the head's cross entropy, added."""
        teacher, labels = require(batch.teacher, "teacher"), require(batch.labels, "label")
        if not self.shared.teacher_gradient:
            teacher = teacher.detach()
        logits_KBTC = self.head(teacher.features_KBD).unflatten(-1, (-1, self.shared.bins))
        bins_KBT = self._bin(labels.value)
        known_KBT = labels.known_KB[..., None].expand(bins_KBT.shape)
        head_K = cross_entropy(*(x.flatten(1, 2) for x in (logits_KBTC, bins_KBT, known_KBT)))
        steps_K = step_regression(
            batch.student.logits_KBC,
            teacher.logits_KBC,
            logits_KBTC,
            class_values_C=self._middles(logits_KBTC),
            distance=self.shared.distance,
            teacher_weight=self.per_lane("inside", logits_KBTC),
        )
        return TermValue(head_K + steps_K, {"head": head_K.detach()})

    def _bin(self, targets_KBT: Tensor) -> Tensor:
        low, high, bins = self.shared.low, self.shared.high, self.shared.bins
        return ((targets_KBT - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()

    def _middles(self, like: Tensor) -> Tensor:
        low, high, bins = self.shared.low, self.shared.high, self.shared.bins
        return low + (high - low) * (torch.arange(bins, dtype=like.dtype, device=like.device) + 0.5) / bins
