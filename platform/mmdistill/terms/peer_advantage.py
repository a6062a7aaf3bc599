"""Learning from a peer where it is better (dual policy distillation, Lai et al., 2020)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmdistill.losses.guidance import peer_advantage, peer_advantage_regression
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require


class PeerAdvantageSettings(TermSettings):
    """KL(peer || own) weighted by exp(alpha (value of the peer - own value)) of each row."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    alpha: Annotated[float, Field(gt=0), Tunable(low=0.1, high=5.0, log=True)] = 1.0
    teacher_gradient: bool = False


@TERMS.register("peer_advantage")
class PeerAdvantage(AbstractTerm[PeerAdvantageSettings]):
    """Let two networks teach each other, each on the rows it knows better.

    A row's value is minus its task loss: cross entropy, or the absolute error in regression, where squared
    differences stand for the divergence. So only labelled rows count. The peer is the teacher that trains
    along; with ``teacher_gradient`` it learns from the student too. What teaches is a constant.
    """

    settings_type = PeerAdvantageSettings
    source = "Lai, Zha, Li and Hu 2020, its supervised analogue (inferred); dpd_ddpg/ddpg.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane, both directions added where there are two."""
        student, peer = batch.student.logits_KBC, require(batch.teacher, "teacher").logits_KBC
        value_K = self._learn(student, peer.detach(), batch)
        if self.shared.teacher_gradient:
            value_K = value_K + self._learn(peer, student.detach(), batch)
        return TermValue(value_K)

    def _learn(self, own: Tensor, guide: Tensor, batch: Batch) -> Tensor:
        labels = require(batch.labels, "label")
        loss = peer_advantage_regression if self.task == "regression" else peer_advantage
        alpha = self.per_lane("alpha", own)
        return loss(own, guide, labels.value, alpha=alpha, row_weights_LB=labels.known_KB)
