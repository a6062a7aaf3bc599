"""Structural transport of PKDOT and MT-PKDOT: entropic optimal transport between similarity structures."""

import math
from typing import Annotated, Literal

from pydantic import Field

from mmdistill.losses.structural import structural_transport
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require


class TransportSettings(TermSettings):
    """Sinkhorn divergence between rows of the two similarity matrices (MT-PKDOT, equation 3).

    ``eps``, where given, is the regularisation itself, in place of ``eps_rel``: the square of the published
    code's blur of 0.1 is 0.01.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.2
    eps_rel: Annotated[float, Field(gt=0, allow_inf_nan=True), Tunable(low=0.01, high=3.0, log=True)] = 0.13
    eps: Annotated[float, Field(gt=0)] | None = None
    k: Annotated[int, Field(ge=1), Tunable(low=5, high=60, log=True, integer=True)] = 30
    anchors: Literal["least", "most", "all", "global"] = "least"
    shift: Literal["min", "none"] = "min"
    detach_shift: bool = False
    debias: bool = True
    coupling: Literal["entropic", "identity"] = "entropic"
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    iterations: Annotated[int, Field(ge=1)] = 1000

    def dead(self) -> frozenset[str]:
        """Identity coupling solves no transport problem; `all` takes no number; no shift has no gradient."""
        dead = {"k"} if self.anchors == "all" else set()
        if self.shift == "none":
            dead.add("detach_shift")
        if self.coupling == "identity":
            dead |= {"eps_rel", "eps", "debias", "tolerance", "iterations"}
        elif self.eps is not None:
            dead.add("eps_rel")
        elif math.isinf(self.eps_rel):
            dead |= {"eps_rel", "tolerance", "iterations"}
        return frozenset(dead)

    def most(self, batch_size: int) -> dict[str, int]:
        """Return the greatest k: a sample has as many others as the batch has, less itself."""
        return {"k": batch_size - 1}


@TERMS.register("transport")
class Transport(AbstractTerm[TransportSettings]):
    """Match the student's similarity structure to the teacher's by optimal transport between anchored rows.

    Controls: ``coupling = "identity"`` pairs every sample with itself; ``eps_rel = inf`` matches means only.
    """

    settings_type = TransportSettings
    source = "MT-PKDOT, arXiv 2408.09035, equation 3; code mtpkdot.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane; details tell how well its problem was solved."""
        student = batch.student.features_KBD
        teacher = require(batch.teacher, "teacher").features_KBD.detach()
        value, details = structural_transport(
            student,
            teacher,
            eps_rel=self.per_lane("eps_rel", student),
            eps=self.shared.eps,
            k=self.per_lane("k", student).long(),
            anchors=self.shared.anchors,
            shift=self.shared.shift,
            detach_shift=self.shared.detach_shift,
            debias=self.shared.debias,
            coupling=self.shared.coupling,
            tolerance=self.shared.tolerance,
            iterations=self.shared.iterations,
        )
        return TermValue(value, details)
