"""The one kind of network: an encoder per modality, gated cross-modal fusion, a head.

Teachers, students and auxiliaries differ in the modalities they see, nothing else.

Axes: K lanes, B batch, D width, C outputs (classes or targets), I inputs of one modality, S streams.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.models.hallucinator import Hallucinator, Missing
from mmdistill.models.lanes import LaneLinear
from mmdistill.settings import Settings
from mmdistill.softmax import softmax


class NetworkSettings(Settings):
    """Size of every network of a run."""

    width: Annotated[int, Field(ge=2, le=4096)] = 64
    depth: Annotated[int, Field(ge=1, le=8)] = 2


class Outputs(NamedTuple):
    """What a network says about a batch."""

    features_KBD: Tensor
    logits_KBC: Tensor

    def detach(self) -> "Outputs":
        """Return the same values without their history."""
        return Outputs(self.features_KBD.detach(), self.logits_KBC.detach())


class Encoder(nn.Module):
    """A multilayer perceptron, x_KBI -> features_KBD, ReLU after every layer."""

    def __init__(self, inputs: int, settings: NetworkSettings, seeds: Sequence[int], role: str) -> None:
        super().__init__()
        sizes = [inputs] + [settings.width] * settings.depth
        self.layers = nn.ModuleList(
            LaneLinear(before, after, seeds, f"{role}.{depth}")
            for depth, (before, after) in enumerate(pairwise(sizes))
        )

    def forward(self, x_KBI: Tensor) -> Tensor:
        """Return the features of the batch."""
        for layer in self.layers:
            x_KBI = torch.relu(layer(x_KBI))
        return x_KBI

    def every_layer(self, x_KBI: Tensor) -> list[Tensor]:
        """Return what every layer makes of the batch; the last are the features."""
        found = []
        for layer in self.layers:
            x_KBI = torch.relu(layer(x_KBI))
            found.append(x_KBI)
        return found


class GatedFusion(nn.Module):
    """Fuse the features of any set of modalities: z = sum_m g_m P_m h_m, with gates g = softmax(W [P_m h_m]).

    The fusion of MT-PKDOT's joint teacher (gate between the two cross-attended streams) written for any
    number of modalities: with one token per modality, cross-attention is a value and output projection.
    The softmax gate over more than two streams is inferred, not published. In the released code samples of a
    batch attend to each other (the batch is read as a sequence); here nothing looks across samples.
    """

    def __init__(self, names: Sequence[str], width: int, seeds: Sequence[int], role: str) -> None:
        super().__init__()
        self.projections = nn.ModuleList(LaneLinear(width, width, seeds, f"{role}.{name}") for name in names)
        self.gate = LaneLinear(width * len(names), len(names), seeds, f"{role}.gate")

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """Return the fused features_KBD of features_KBD of each modality, in the order of the names."""
        projected = [project(stream) for project, stream in zip(self.projections, streams, strict=True)]
        gates_KBS = softmax(self.gate(torch.cat(projected, dim=-1)))
        return (torch.stack(projected, dim=-2) * gates_KBS[..., None]).sum(dim=-2)


class Network(nn.Module):
    """Encoders, fusion where there is more than one stream of features, and a head."""

    def __init__(
        self,
        widths: Mapping[str, int],
        outputs: int,
        settings: NetworkSettings,
        seeds: Sequence[int],
        missing: Missing | None = None,
    ) -> None:
        """Build K lanes.

        Args:
            widths: inputs of each modality the network sees; at least one.
            outputs: C, classes or regression targets.
            settings: width D and depth.
            seeds: one per lane.
            missing: modalities it does not see and fuses all the same, from what stands in for them.
        """
        super().__init__()
        self.modalities = tuple(sorted(widths))
        self.settings, self.missing = settings, missing
        self.width = settings.width
        self.encoders = nn.ModuleDict(
            {name: Encoder(widths[name], settings, seeds, f"encoder.{name}") for name in self.modalities}
        )
        absent = () if missing is None else missing.modalities
        seen, self.hallucinators = settings.width * len(self.modalities), nn.ModuleDict()
        if missing is not None and missing.is_learned:
            for name in absent:
                role = f"hallucinator.{name}"
                self.hallucinators[name] = Hallucinator(missing.kind, seen, self.width, seeds, role)
        fused = (*self.modalities, *absent)
        self.fusion = GatedFusion(fused, settings.width, seeds, "fusion") if len(fused) > 1 else None
        self.head = LaneLinear(settings.width, outputs, seeds, "head")

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Return features and logits of a batch x_KBI per modality; other ``inputs`` are not looked at."""
        return self.with_missing(inputs)[0]

    def with_missing(self, inputs: Mapping[str, Tensor]) -> tuple[Outputs, list[Tensor]]:
        """Return features and logits, and what stands in for each missing modality, features_KBD.

        A hallucinator learns from its own loss alone: it sends no gradient to the encoders and gets none
        from the fusion, as in the published code, where it is trained before the student.
        """
        return self._fused([self.encoders[name](inputs[name]) for name in self.modalities])

    def with_layers(self, inputs: Mapping[str, Tensor]) -> tuple[Outputs, tuple[Tensor, ...]]:
        """Return the outputs, and what each layer below the encoders' last makes of the batch.

        There are ``depth`` - 1 such layers; those of several modalities stand side by side.
        """
        encoders = {name: cast("Encoder", self.encoders[name]) for name in self.modalities}
        found = [encoder.every_layer(inputs[name]) for name, encoder in encoders.items()]
        *below, streams = zip(*found, strict=True)
        return self._fused(streams)[0], tuple(torch.cat(layer, dim=-1) for layer in below)

    def _fused(self, seen: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
        found = self._missing(seen)
        streams = [*seen, *(stream.detach() for stream in found)]
        features_KBD = streams[0] if self.fusion is None else self.fusion(streams)
        return Outputs(features_KBD, self.head(features_KBD)), found

    def _missing(self, streams: Sequence[Tensor]) -> list[Tensor]:
        if self.missing is None:
            return []
        if not self.missing.is_learned:
            return [torch.zeros_like(streams[0])] * len(self.missing.modalities)
        seen_KBI = torch.cat(list(streams), dim=-1).detach()
        return [predict(seen_KBI) for predict in self.hallucinators.values()]


class Adapter(nn.Module):
    """Two linear maps through half the width, no activation (MT-PKDOT, one per unimodal teacher)."""

    def __init__(self, width: int, seeds: Sequence[int], role: str) -> None:
        super().__init__()
        self.down = LaneLinear(width, max(width // 2, 1), seeds, f"{role}.down")
        self.up = LaneLinear(max(width // 2, 1), width, seeds, f"{role}.up")

    def forward(self, features_KBD: Tensor) -> Tensor:
        """Return the adapted features."""
        adapted: Tensor = self.up(self.down(features_KBD))
        return adapted
