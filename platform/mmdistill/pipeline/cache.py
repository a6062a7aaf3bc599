"""The stage cache: verified on every read, shared by arms, trials, seeds and studies.

An entry is ``<key>.json`` (the commit mark, sealed: facts, and the name and hash of the tensors) beside
``<kind>-<hash>.safetensors``. Nothing is ever pickled.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mmdistill.errors import ConflictError, StudyError
from mmdistill.faults import point
from mmdistill.pipeline.checkpoints import Checkpoints, training_name
from mmdistill.pipeline.stages import Stage
from mmdistill.records.audit import CHECKPOINTS
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.store import put_if_absent, read_verified, replace_atomically, sha256_of
from mmdistill.training.runtime import Runtime

# A process that dies loses this much training and less than an epoch.
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """What a stage wrote: tensors by name, and facts as plain JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def on_cpu(self) -> Self:
        """Return the entry as it is read back, wherever it was computed."""
        return replace(self, tensors={name: tensor.cpu() for name, tensor in self.tensors.items()})


class StageCache:
    """A folder of finished stages, and of snapshots of those in progress."""

    def __init__(self, root: Path, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
        """Take a folder, which need not exist.

        Args:
            root: the folder.
            checkpoint_seconds: least time between two snapshots of a training; 0 for one after every epoch.
        """
        self.root, self.checkpoint_seconds = root, checkpoint_seconds

    def checkpoints(self, keys: Sequence[str], runtime: Runtime) -> Checkpoints:
        """Return the snapshots of the training that computes the stages with these keys together."""
        name = training_name(keys, str(runtime.device), runtime.world_size)
        return Checkpoints(self.root / CHECKPOINTS / name, self.checkpoint_seconds)

    def read(self, stage: Stage) -> tuple[Entry | None, str]:
        """Return the entry, or None, and the reason: "hit" or why it is a miss.

        The mark of an entry that does not verify is set aside as ``*.corrupt``, and it counts as a miss.
        """
        mark = self._mark(stage)
        if not mark.exists():
            return None, "no entry"
        try:
            content = unseal(mark, mark.read_bytes())
            if content["key"] != stage.key:
                raise StudyError(f"{mark} belongs to the stage {content['key']}")
            payload = read_verified(self.root / content["tensors"], content["sha256"])
            return Entry(load(payload), content["facts"]), "hit"
        except (StudyError, OSError, KeyError, SafetensorError) as error:
            point("entries.aside", mark)
            # Another reader may have been faster.
            with contextlib.suppress(FileNotFoundError):
                mark.rename(mark.with_suffix(".corrupt"))
            return None, f"entry set aside: {error}"

    def holds(self, stage: Stage) -> bool:
        """Return whether there is an entry, which may still turn out to be damaged."""
        return self._mark(stage).exists()

    def write(self, stage: Stage, entry: Entry) -> None:
        """Commit an entry; where another worker was first, its entry stays."""
        payload = save({name: tensor.contiguous() for name, tensor in entry.on_cpu().tensors.items()})
        sha256 = sha256_of(payload)
        name = f"{stage.kind}-{sha256[:16]}.safetensors"
        # Called after its content: what may be there already is the same, or damaged.
        replace_atomically(self.root / name, payload, "tensors")
        content = {
            "key": stage.key,
            "kind": stage.kind,
            "name": stage.name,
            "own": stage.own,
            "upstream": [before.key for before in stage.upstream],
            "tensors": name,
            "sha256": sha256,
            "facts": entry.facts,
        }
        # Two workers may differ in their timings; the first entry is as good as this one.
        with contextlib.suppress(ConflictError):
            put_if_absent(self._mark(stage), seal(content), "entries")

    def _mark(self, stage: Stage) -> Path:
        return self.root / f"{stage.key}.json"
