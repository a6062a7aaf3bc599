"""The stage cache: verified on every read, shared by arms, trials, seeds and studies.

An entry is ``<key>.json`` (the commit mark: facts, and the name and hash of the tensors) beside
``<hash>.safetensors``. Nothing is ever pickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mmdistill.errors import ConflictError, StudyError
from mmdistill.pipeline.stages import Stage
from mmdistill.records.store import put_if_absent, put_named, read_verified


@dataclass(frozen=True)
class Entry:
    """What a stage wrote: tensors by name, and facts as plain JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class StageCache:
    """A folder of finished stages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, stage: Stage) -> bool:
        """Return whether there is an entry; it is verified when it is read."""
        return self._mark(stage).exists()

    def read(self, stage: Stage) -> tuple[Entry | None, str]:
        """Return the entry, or None, and the reason: "hit" or why it is a miss.

        An entry that does not verify is set aside as ``*.corrupt`` and counts as a miss.
        """
        mark = self._mark(stage)
        if not mark.exists():
            return None, "no entry"
        try:
            content = json.loads(mark.read_text("utf-8"))
            payload = read_verified(self.root / content["tensors"], content["sha256"])
            return Entry(load(payload), content["facts"]), "hit"
        except (StudyError, OSError, ValueError, KeyError, SafetensorError) as error:
            self._set_aside(mark)
            return None, f"entry set aside: {error}"

    def write(self, stage: Stage, entry: Entry) -> None:
        """Commit an entry; where another worker was first, its entry stays."""
        tensors = {name: tensor.contiguous().cpu() for name, tensor in entry.tensors.items()}
        name, sha256 = put_named(self.root, stage.kind, ".safetensors", save(tensors))
        content = {
            "kind": stage.kind,
            "name": stage.name,
            "own": stage.own,
            "upstream": [before.key for before in stage.upstream],
            "tensors": name,
            "sha256": sha256,
            "facts": entry.facts,
        }
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=True)
        try:
            put_if_absent(self._mark(stage), text.encode())
        except ConflictError:
            # Two workers may differ in their timings; the first entry is as good as this one.
            return

    def _set_aside(self, mark: Path) -> None:
        """Move the mark and its tensors away, so that the stage can be written anew."""
        try:
            named = self.root / Path(str(json.loads(mark.read_text("utf-8"))["tensors"])).name
            named.rename(named.with_suffix(".corrupt"))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the mark itself is damaged: there is no name to follow
        mark.rename(mark.with_suffix(".corrupt"))

    def _mark(self, stage: Stage) -> Path:
        return self.root / f"{stage.key}.json"
