"""Structural transport of PKDOT and MT-PKDOT: entropic optimal transport between similarity structures."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from mmdistill.losses.structural import Coupling, structural_plan, structural_transport
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require
from mmdistill.transport.sinkhorn import Value

# Settings of a regularised problem; and what each coupling does not look at.
SOLVER = {"eps_rel", "eps", "value", "debias", "tolerance", "iterations"}
UNUSED: dict[Coupling, set[str]] = {
    "entropic": {"penalty_rel", "structure"},
    "identity": {*SOLVER, "penalty_rel", "structure"},
    "exact": {*SOLVER, "penalty_rel", "structure"},
    "unbalanced": {"value", "structure"},
    "gromov": {*SOLVER, "penalty_rel", "structure", "anchors", "k"},
    "fused_gromov": {*SOLVER, "penalty_rel"},
}


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
    coupling: Coupling = "entropic"
    value: Value = "regularised"
    penalty_rel: Annotated[float, Field(gt=0), Tunable(low=1.0, high=100.0, log=True)] = 10.0
    structure: Annotated[float, Field(ge=0, le=1), Tunable(low=0.1, high=0.9)] = 0.5
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    iterations: Annotated[int, Field(ge=1)] = 1000

    def dead(self) -> frozenset[str]:
        """`all` takes no number; no shift has no gradient; each coupling leaves some of the others unused."""
        dead = set(UNUSED[self.coupling])
        if self.anchors == "all":
            dead.add("k")
        if self.shift == "none":
            dead.add("detach_shift")
        if self.eps is not None:
            dead.add("eps_rel")
        elif math.isinf(self.eps_rel) and self.coupling in {"entropic", "unbalanced"}:
            dead |= {"eps_rel", "value", "penalty_rel", "tolerance", "iterations"}
        return frozenset(dead)

    def most(self, batch_size: int) -> dict[str, int]:
        """Return the greatest k: a sample has as many others as the batch has, less itself."""
        return {"k": batch_size - 1}


@TERMS.register("transport")
class Transport(AbstractTerm[TransportSettings]):
    """Match the student's similarity structure to the teacher's by optimal transport between anchored rows.

    Controls: ``coupling = "identity"`` pairs every sample with itself; ``eps_rel = inf`` matches means only.
    The couplings ``exact``, ``unbalanced``, ``gromov`` and ``fused_gromov`` are solved by POT lane by lane:
    one problem of 64 samples takes 1 to 5 ms.
    """

    settings_type = TransportSettings
    source = "MT-PKDOT, arXiv 2408.09035, equation 3; code mtpkdot.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane; details tell how well its problem was solved."""
        value, details = structural_transport(*self._structures(batch), **self._problem(batch))
        return TermValue(value, details)

    def plan(self, batch: Batch) -> Tensor:
        """Return the plan between the points of teacher and student."""
        return structural_plan(*self._structures(batch), **self._problem(batch))

    def _structures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.student.features_KBD, require(batch.teacher, "teacher").features_KBD.detach()

    def _problem(self, batch: Batch) -> dict[str, Any]:
        shared, student = self.shared, batch.student.features_KBD
        free = [n for n in ("penalty_rel", "structure") if n not in UNUSED[shared.coupling]]
        same = ("eps", "anchors", "shift", "detach_shift", "debias", "coupling", "value", "tolerance")
        return {
            **{name: self.per_lane(name, student) for name in ("eps_rel", *free)},
            **{name: getattr(shared, name) for name in (*same, "iterations")},
            "k": self.per_lane("k", student).long(),
        }
