"""Alignment of modalities to class prototypes (unseen modality interaction, Zhang et al., 2023).

Axes: K lanes, B batch, D width, C classes, M teachers.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.losses.hints import class_prototypes
from mmdistill.randomness import derive_seed
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    Unlabelled,
    classes_of,
    frozen_pool,
    to_teacher_width,
)


class ClassPrototypesSettings(TermSettings):
    """Squared distance of the features of student and teachers to learned prototypes of their class."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 0.1
    unlabelled: Unlabelled = "skip"


@TERMS.register("class_prototypes")
class ClassPrototypes(AbstractTerm[ClassPrototypesSettings]):
    """Let the features of all modalities gather around the same prototype of each class.

    Averaged over the student and all teachers, which are frozen: they draw the prototypes, the prototypes
    draw the student. There is no reorganisation of tokens: a modality has one token here, and in the released
    code the weights of a token sum to 1 over positions, so that their mean, which is all that is aligned,
    does not depend on them. The classes of rows without a label may be the teacher's choice (inferred).
    """

    settings_type = ClassPrototypesSettings
    needs = frozenset({"teacher", "pool"})
    tasks = frozenset({"classification"})
    source = "Zhang et al. 2023; Unseen-Modality-Interaction train.py AlignmentModule"

    def __init__(
        self, settings: Sequence[ClassPrototypesSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.mapped = to_teacher_width(shapes, seeds, "class_prototypes.map")
        drawn = [_drawn(seed, shapes.outputs, shapes.teacher) for seed in seeds]
        self.prototypes_KCD = nn.Parameter(torch.stack(drawn))

    def forward(self, batch: Batch) -> TermValue:
        """Return the mean distance of each lane."""
        teachers_KMBD = frozen_pool(batch).features_KBMD.transpose(1, 2)
        classes = classes_of(batch, self.shared.unlabelled)
        students_K1BD = self.mapped(batch.student.features_KBD)[:, None]
        features_KMBD = torch.cat([students_K1BD, teachers_KMBD], dim=1)
        labels_KMB, known_KMB = (x[:, None].expand(features_KMBD.shape[:-1]) for x in classes)
        prototypes_KMCD = self.prototypes_KCD[:, None].expand(-1, features_KMBD.shape[1], -1, -1)
        distances_KM = class_prototypes(features_KMBD, prototypes_KMCD, labels_KMB, row_weights_LB=known_KMB)
        return TermValue(distances_KM.mean(dim=1))


def _drawn(seed: int, classes: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "class_prototypes"))
    return torch.randn(classes, width, generator=generator)
