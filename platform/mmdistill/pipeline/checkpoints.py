"""Snapshots of a training in progress, so that a long order whose process died goes on where it was.

A training has a folder of its own. A snapshot is ``<epoch>.json`` (the commit mark, sealed: facts, and the
name and hash of the tensors) beside ``<epoch>-<hash>.safetensors``; one that does not verify does not exist.
Nothing is ever pickled.
"""

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import mmdistill
from mmdistill.errors import StudyError
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.store import file_names, read_verified, replace_atomically, sha256_of
from mmdistill.settings import digest
from mmdistill.training.loop import Snapshot

# The last may be torn by what killed its writer.
KEPT = 2


def training_name(keys: Sequence[str], device: str, workers: int) -> str:
    """Return the name of a training: what may go on from its snapshots, bit for bit.

    Args:
        keys: of the stages that are computed together, in order.
        device: where; its number does not matter.
        workers: how many share the work.
    """
    kind = device.partition(":")[0]
    return digest([list(keys), kind, workers, mmdistill.__version__, torch.__version__])


class Checkpoints:
    """The snapshots of one training."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Take a folder, which need not exist.

        Args:
            folder: of this training alone.
            seconds: least time between two snapshots.
        """
        self._folder, self._seconds = folder, seconds
        self._last = time.monotonic()

    def load(self) -> Snapshot | None:
        """Return the newest snapshot that verifies; the marks of others are set aside as ``*.corrupt``."""
        for mark in reversed(self._marks()):
            try:
                content = unseal(mark, mark.read_bytes())
                payload = read_verified(self._folder / content["tensors"], content["sha256"])
                return Snapshot(load(payload), content["facts"])
            except (StudyError, OSError, KeyError, SafetensorError):
                # Another process may have been faster.
                with contextlib.suppress(FileNotFoundError):
                    mark.rename(mark.with_suffix(".corrupt"))
        return None

    def is_due(self) -> bool:
        """Return whether the last snapshot is old enough for another."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot and the one before it."""
        epoch = f"{snapshot.facts['epoch']:06d}"
        payload = save({name: tensor.cpu().contiguous() for name, tensor in snapshot.tensors.items()})
        sha256 = sha256_of(payload)
        name = f"{epoch}-{sha256[:16]}.safetensors"
        # What may be there already differs in its timings only, or is damaged.
        replace_atomically(self._folder / name, payload, "checkpoints")
        content = {"tensors": name, "sha256": sha256, "facts": snapshot.facts}
        replace_atomically(self._folder / f"{epoch}.json", seal(content), "checkpoints")
        for mark in self._marks()[:-KEPT]:
            mark.unlink(missing_ok=True)
            for old in self._folder.glob(f"{mark.stem}-*.safetensors"):
                old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Forget all snapshots: the result is on record."""
        for mark in self._marks():
            mark.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _marks(self) -> list[Path]:
        return [self._folder / name for name in file_names(self._folder) if name.endswith(".json")]
