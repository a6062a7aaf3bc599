"""A fold's data on the device, and who is labelled in it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from mmdistill.data.card import Card
from mmdistill.data.folds import held_out_folds, labelled_mask
from mmdistill.data.opening import DataSettings, FoldData, Part, open_fold
from mmdistill.data.samples import Floats
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.terms.base import Task
from mmdistill.training.objectives import TensorPart


@dataclass(frozen=True)
class Fold:
    """One fold, as arrays for measuring and as tensors for training.

    Attributes:
        arrays: the fold; its test part is there for test orders only.
        train, validation: the same as tensors; a missing label reads 0 and is never marked as labelled,
            targets are standardised by ``arrays.target_scale``: networks begin near 0, losses and evidence
            add up targets of any unit.
    """

    arrays: FoldData
    train: TensorPart
    validation: TensorPart
    device: torch.device

    @property
    def card(self) -> Card:
        """Return the card of the data set."""
        return self.arrays.card

    @property
    def task(self) -> Task:
        """Return classification or regression."""
        return self.card.task

    @property
    def outputs(self) -> int:
        """Return the number of classes or targets."""
        return self.card.outputs

    def in_units(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return what networks say [..., C]; of a regression in the units of the targets."""
        if self.arrays.target_scale is None:
            return outputs
        mean_T, spread_T = self.arrays.target_scale
        return outputs * spread_T + mean_T

    def widths(self, modalities: tuple[str, ...]) -> dict[str, int]:
        """Return the inputs of each modality."""
        return {name: self.train.inputs[name].shape[1] for name in modalities}

    def labelled(self, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
        """Return which training rows of the pair with that seed have a label; the same in every arm."""
        return labelled_mask(self.arrays.train, fraction=fraction, seed=derive_seed(seed, "labels"))

    def held_out(self, labelled: npt.NDArray[np.bool_], count: int, seed: int) -> npt.NDArray[np.int64]:
        """Return the inner fold of each labelled row, -1 without a label."""
        return held_out_folds(self.arrays.train, labelled, count, derive_seed(seed, "out of fold"))

    def permuted(self, fraction: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return from which row each row takes its label when labelled ones swap theirs.

        Returns:
            for the training rows, those without a label as they are, and for the validation rows.
        """
        source_N = np.arange(len(self.train))
        labelled = np.flatnonzero(self.labelled(fraction, seed))
        source_N[labelled] = numpy_generator("permuted labels", seed).permutation(labelled)
        return source_N, numpy_generator("permuted validation", seed).permutation(len(self.validation))


@lru_cache(maxsize=4)
def opened(data: DataSettings, fold: int, with_test: bool, device: str) -> Fold:
    """Return a fold ready for training; the last few stay in memory of this process."""
    arrays = open_fold(data, fold, with_test=with_test)
    where = torch.device(device)
    parts = (arrays.train, arrays.validation)
    train, validation = (tensor_part(part, arrays.target_scale, where) for part in parts)
    return Fold(arrays, train, validation, where)


def tensor_part(part: Part, target_scale: tuple[Floats, Floats] | None, device: torch.device) -> TensorPart:
    """Return a part as tensors, its targets standardised."""
    inputs = {name: torch.from_numpy(x).to(device) for name, x in part.inputs.items()}
    if target_scale is None:
        return TensorPart(inputs, torch.from_numpy(part.labels).to(device).clamp(min=0))
    mean_T, spread_T = target_scale
    return TensorPart(inputs, torch.from_numpy((part.labels - mean_T) / spread_T).to(device))
