"""Conditional entropy of the teacher given the student (AMID's third term): adversarial, or Gaussian.

Axes: K lanes, B batch, D width.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmdistill.losses.base import unit_rows
from mmdistill.losses.gaussian import vid
from mmdistill.models.critic import Discriminator
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
    normalised,
    require,
)

# softplus(rho) + 1e-5 = 1: unit variance, the variance of the layer-normalised target.
UNIT_VARIANCE_RHO = 0.5413


class ConditionalEntropySettings(TermSettings):
    """How uncertain the teacher's features are, given the student's; all choices are inferred.

    ``form``: ``gaussian`` is a likelihood around a linear map G of the student's features; in ``alice`` a
    discriminator tells (teacher, teacher) from (teacher, G(student)); in ``cgan`` (student, teacher) from
    (student, G(student, noise)). ``warm_up``: epochs over which the gradient grows to its full size.
    ``instance_noise``: standard deviation of what is added to each number the discriminator judges, falling
    to 0 over the training; ``noise_width``: numbers of noise into G. ``teacher_gradient``: whether a teacher
    that trains along is pulled towards what can be predicted.

    It pulls the student a tenth (``alice``: a twentieth) as hard as the task. On digits_views ``gaussian``
    was best from weight 10 on; ``alice`` changed little up to 3 and did harm above.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.3, high=30.0, log=True)] = 3.0
    form: Literal["gaussian", "alice", "cgan"] = "gaussian"
    instance_noise: Annotated[float, Field(ge=0), Tunable(low=0.1, high=1.0)] = 0.5
    discriminator_width: Annotated[int, Field(ge=1)] = 64
    noise_width: Annotated[int, Field(ge=1)] = 16
    warm_up: Annotated[int, Field(ge=0)] = 0
    teacher_gradient: bool = False

    def dead(self) -> frozenset[str]:
        """Return what only the other forms have."""
        if self.form == "gaussian":
            return frozenset({"instance_noise", "discriminator_width", "noise_width"})
        return frozenset({"noise_width"} if self.form == "alice" else ())


@TERMS.register("conditional_entropy")
class ConditionalEntropy(AbstractTerm[ConditionalEntropySettings]):
    """Lower an upper bound of H(teacher | student).

    The teacher's features enter through a layer norm without parameters: the differential entropy of
    features that may shrink falls without limit. An adversary judges rows of length 1.

    In the adversarial forms the value is the generator's -E log D(fake), non-saturating; the discriminator's
    own loss adds its gradient and nothing to the value. Both sides step at once, not in turn (inferred). The
    detail ``discriminator_accuracy`` is .5 where it is lost, 1 where it has won. A generator with noise can
    match (student, teacher) whatever the student knows, so ``cgan`` asks less of the student than ``alice``.
    """

    settings_type = ConditionalEntropySettings
    source = (
        "AMID, arXiv 2306.07646, equation 6; forms inferred: ALICE (Li et al. 2017), conditional GAN, and "
        "Gaussian as VID (Ahn et al. 2019)"
    )

    def __init__(
        self, settings: Sequence[ConditionalEntropySettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        own, role = self.shared, "conditional_entropy"
        self._epochs = shapes.epochs
        extra = own.noise_width if own.form == "cgan" else 0
        self.mean = LaneLinear(shapes.student + extra, shapes.teacher, seeds, f"{role}.mean")
        if own.form == "gaussian":
            self.rho_KD = nn.Parameter(torch.full((len(seeds), shapes.teacher), UNIT_VARIANCE_RHO))
            return
        condition = shapes.teacher if own.form == "alice" else shapes.student
        self.discriminator = Discriminator(
            condition + shapes.teacher, own.discriminator_width, seeds, f"{role}.discriminator"
        )
        self.generators = tuple(
            torch.Generator().manual_seed(derive_seed(seed, role, "noise")) for seed in seeds
        )

    def forward(self, batch: Batch) -> TermValue:
        """Return the bound of each lane up to a constant, or the generator's loss."""
        teacher_KBD = normalised(require(batch.teacher, "teacher").features_KBD)
        if not self.shared.teacher_gradient:
            teacher_KBD = teacher_KBD.detach()
        if self.shared.form == "gaussian":
            value_K = vid(self.mean(batch.student.features_KBD), teacher_KBD, rho=self.rho_KD)
            return TermValue(self._warmed_up(value_K, batch.epoch))
        return self._adversarial(batch.student.features_KBD, teacher_KBD, batch.epoch)

    def _warmed_up(self, value_K: Tensor, epoch: int) -> Tensor:
        """Return the same value with a gradient that grows over the first epochs."""
        share = min(1.0, (epoch + 1) / (self.shared.warm_up + 1))
        return value_K.detach() + share * (value_K - value_K.detach())

    def _adversarial(self, student_KBD: Tensor, teacher_KBD: Tensor, epoch: int) -> TermValue:
        # Judged at length 1: then a discriminator that stretches nothing keeps a slope everywhere.
        teacher_KBD = teacher_KBD / math.sqrt(teacher_KBD.shape[-1])
        fake_KBD = unit_rows(self.mean(self._with_noise(student_KBD)))
        # The student is not to hide from the discriminator: as a condition it gets no gradient.
        condition_KBD = teacher_KBD if self.shared.form == "alice" else unit_rows(student_KBD).detach()
        noise_KBD = self._instance_noise(teacher_KBD, epoch), self._instance_noise(teacher_KBD, epoch)
        real = torch.cat([condition_KBD, teacher_KBD + noise_KBD[0]], dim=-1)
        fake = torch.cat([condition_KBD, fake_KBD + noise_KBD[1]], dim=-1)
        layers = self.discriminator.normalised()
        judged_KB = self.discriminator(torch.cat([real, fake], dim=1).detach(), layers)
        real_KB, unreal_KB = judged_KB.chunk(2, dim=1)
        own_K = (softplus(-real_KB) + softplus(unreal_KB)).mean(dim=1)
        fixed = [(weight.detach(), bias.detach()) for weight, bias in layers]
        value_K = softplus(-self.discriminator(fake, fixed)).mean(dim=1)
        if self.shared.form == "cgan" and self.shared.teacher_gradient:
            value_K = value_K + _gradient_alone(softplus(self.discriminator(real, fixed)).mean(dim=1))
        right_KB = torch.cat([real_KB > 0, unreal_KB < 0], dim=1)
        details = {"discriminator_accuracy": right_KB.to(value_K.dtype).mean(dim=1)}
        return TermValue(self._warmed_up(value_K, epoch) + _gradient_alone(own_K), details)

    def _with_noise(self, student_KBD: Tensor) -> Tensor:
        if self.shared.form == "alice":
            return student_KBD
        return torch.cat([student_KBD, self._drawn(student_KBD, self.shared.noise_width)], dim=-1)

    def _instance_noise(self, like_KBD: Tensor, epoch: int) -> Tensor:
        scale_K = self.per_lane("instance_noise", like_KBD) * max(0.0, 1 - epoch / self._epochs)
        return scale_K[:, None, None] * self._drawn(like_KBD, like_KBD.shape[-1])

    def _drawn(self, like_KBD: Tensor, width: int) -> Tensor:
        rows = like_KBD.shape[1]
        drawn = [torch.randn(rows, width, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(like_KBD)


def _gradient_alone(value_K: Tensor) -> Tensor:
    """Return zeros that have the gradient of a value."""
    return value_K - value_K.detach()
