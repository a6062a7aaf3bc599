"""What frozen teachers say about a batch: one chosen per row or batch, a mixture, or all of them.

Axes: K lanes, B batch, N rows, D width, C outputs, M teachers, S modalities the student is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mmdistill.losses.task import ccc_loss
from mmdistill.models.network import Outputs
from mmdistill.softmax import softmax
from mmdistill.terms.base import Pool

Policy = Literal["sample", "batch", "mean", "weighted", "fixed"]
RegressionEvidence = Literal["squared_error", "ccc"]


@dataclass(frozen=True)
class FrozenTeachers:
    """Outputs of the frozen teachers on every training row, and how a batch chooses among them.

    Attributes:
        evidence_KMN: the loss by which teachers are compared; 0 on rows without a label.
        labelled_KN: which rows have a label.
        policy: ``sample``, ``batch`` and ``fixed`` choose a teacher; ``mean`` and ``weighted`` mix them all.
        temperature_K: of ``weighted``, in units of the evidence.
        fixed: index of the teacher of ``fixed``.
        judged_KMNC: predictions by whose 1 - CCC over a batch ``batch`` compares, with the ``targets_NC``;
            None to compare by the evidence.
        streams_KSND: what a hallucinating student learns to predict; None for any other.
        further: what some terms look at, [K, M, N, ...]: ``layer_0`` ..., and the logits ``alone`` and
            ``without`` of single modalities.
    """

    names: tuple[str, ...]
    features_KMND: Tensor
    logits_KMNC: Tensor
    evidence_KMN: Tensor
    labelled_KN: Tensor
    policy: Policy
    temperature_K: Tensor | None = None
    fixed: int = 0
    judged_KMNC: Tensor | None = None
    targets_NC: Tensor | None = None
    streams_KSND: Tensor | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)

    def only(self, lanes: Tensor) -> "FrozenTeachers":
        """Return the teachers of some lanes."""
        return replace(
            self,
            features_KMND=self.features_KMND[lanes],
            logits_KMNC=self.logits_KMNC[lanes],
            evidence_KMN=self.evidence_KMN[lanes],
            labelled_KN=self.labelled_KN[lanes],
            temperature_K=None if self.temperature_K is None else self.temperature_K[lanes],
            judged_KMNC=None if self.judged_KMNC is None else self.judged_KMNC[lanes],
            streams_KSND=None if self.streams_KSND is None else self.streams_KSND[lanes],
            further={name: found_KMN[lanes] for name, found_KMN in self.further.items()},
        )

    def choose(self, rows_KB: Tensor) -> Tensor:
        """Return the index of the teacher of each row of a batch, choice_KB; of a policy that chooses."""
        if self.policy == "fixed":
            return torch.full_like(rows_KB, self.fixed)
        evidence_KBM, labelled_KB = self._evidence_at(rows_KB)
        overall_K1 = self.evidence_KMN.sum(dim=2).argmin(dim=1, keepdim=True)
        if self.policy == "sample":
            return torch.where(labelled_KB, evidence_KBM.argmin(dim=2), overall_K1)
        here_K1 = self._batch_losses(rows_KB, evidence_KBM, labelled_KB).argmin(dim=1, keepdim=True)
        chosen_K1 = torch.where(labelled_KB.any(dim=1, keepdim=True), here_K1, overall_K1)
        return chosen_K1.expand_as(rows_KB)

    def taught(self, rows_KB: Tensor) -> tuple[Outputs, Tensor]:
        """Return what the rows learn from, and how much of it each teacher says: weights_KBM, sum 1."""
        if len(self.names) == 1:
            only = (_at(said, rows_KB).squeeze(2) for said in (self.features_KMND, self.logits_KMNC))
            return Outputs(*only), self.features_KMND.new_ones((*rows_KB.shape, 1))
        if self.policy not in {"mean", "weighted"}:
            choice_KB = self.choose(rows_KB)
            weights_KBM = one_hot(choice_KB, len(self.names)).to(self.features_KMND.dtype)
            return self.outputs(rows_KB, choice_KB), weights_KBM
        weights_KBM, pool = self._mixture(rows_KB), self.pool(rows_KB)
        features_KBD, logits_KBC = (
            (weights_KBM[..., None] * said).sum(dim=2) for said in (pool.features_KBMD, pool.logits_KBMC)
        )
        return Outputs(features_KBD, logits_KBC), weights_KBM

    def _mixture(self, rows_KB: Tensor) -> Tensor:
        evidence_KBM, labelled_KB = self._evidence_at(rows_KB)
        if self.policy == "mean":
            return torch.full_like(evidence_KBM, 1 / len(self.names))
        assert self.temperature_K is not None
        count_K1 = self.labelled_KN.sum(dim=1, keepdim=True).clamp_min(1)
        overall_KM = self.evidence_KMN.sum(dim=2) / count_K1
        loss_KBM = torch.where(labelled_KB[..., None], evidence_KBM, overall_KM[:, None])
        return softmax(-loss_KBM / self.temperature_K[:, None, None])

    def streams(self, rows_KB: Tensor) -> list[Tensor]:
        """Return the features_KBD of each modality that the student is missing."""
        assert self.streams_KSND is not None
        return list(_at(self.streams_KSND, rows_KB).unbind(dim=2))

    def _evidence_at(self, rows_KB: Tensor) -> tuple[Tensor, Tensor]:
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        return _at(self.evidence_KMN, rows_KB), self.labelled_KN[lanes, rows_KB]

    def _batch_losses(self, rows_KB: Tensor, evidence_KBM: Tensor, labelled_KB: Tensor) -> Tensor:
        """Return the loss of each teacher over the labelled rows of a batch, loss_KM."""
        if self.judged_KMNC is None or self.targets_NC is None:
            return evidence_KBM.sum(dim=1)
        judged = _at(self.judged_KMNC, rows_KB).unbind(dim=2)
        targets_KBC = self.targets_NC[rows_KB]
        return torch.stack([ccc_loss(said_KBC, targets_KBC, labelled_KB) for said_KBC in judged], dim=1)

    def pool(self, rows_KB: Tensor) -> Pool:
        """Return what every teacher says at each row."""
        found = (self.features_KMND, self.logits_KMNC, self.evidence_KMN)
        return Pool(self.names, *(_at(said, rows_KB) for said in found))

    def outputs(self, rows_KB: Tensor, choice_KB: Tensor) -> Outputs:
        """Return the chosen teacher's features and logits at each row."""
        said = (self.features_KMND, self.logits_KMNC)
        return Outputs(*(_at(x, rows_KB, choice_KB[..., None]).squeeze(2) for x in said))

    def layers(self, rows_KB: Tensor, weights_KBM: Tensor) -> tuple[Tensor, ...]:
        """Return the layers below the features at each row, mixed as the features are."""
        names = sorted(name for name in self.further if name.startswith("layer_"))
        return tuple(self._mixed(name, rows_KB, weights_KBM) for name in names)

    def masked(self, rows_KB: Tensor, weights_KBM: Tensor) -> tuple[Tensor, Tensor]:
        """Return what teachers say at each row from each modality alone, and without each, mixed."""
        alone, without = (self._mixed(name, rows_KB, weights_KBM) for name in ("alone", "without"))
        return alone, without

    def _mixed(self, name: str, rows_KB: Tensor, weights_KBM: Tensor) -> Tensor:
        said = _at(self.further[name], rows_KB)
        return (weights_KBM[(..., *[None] * (said.ndim - 3))] * said).sum(dim=2)


def _at(said_KMN: Tensor, rows_KB: Tensor, choice_KBM: Tensor | None = None) -> Tensor:
    """Return what is said [K, M, N, ...] at the rows of each lane, [K, B, M, ...]; by all or those chosen."""
    lanes, teachers, rows = said_KMN.shape[:3]
    if choice_KBM is None:
        choice_KBM = torch.arange(teachers, device=rows_KB.device)
    lane_K11 = torch.arange(lanes, device=rows_KB.device)[:, None, None]
    if not said_KMN.is_contiguous():  # One tensor for all lanes: flattened it would be copied for each.
        return said_KMN[lane_K11, choice_KBM, rows_KB[..., None]]
    # Whole rows are copied, which is several times faster than by an index for each axis.
    places_KBM = (lane_K11 * teachers + choice_KBM) * rows + rows_KB[..., None]
    found = said_KMN.flatten(0, 2).index_select(0, places_KBM.flatten())
    return found.view(*places_KBM.shape, *said_KMN.shape[3:])
