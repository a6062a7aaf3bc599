"""Samples: cards, data sets, folds and label fractions; arrays only, no torch.

``open_fold`` gives the arrays of one fold; ``check_data`` says what would stop a study before it starts.
"""

from mmdistill.data.card import Card, Modality
from mmdistill.data.dataset import DATASETS, Dataset
from mmdistill.data.folds import FoldSettings, held_out_folds, labelled_mask
from mmdistill.data.opening import DataSettings, FoldData, Part, check_data, open_dataset, open_fold

__all__ = [
    "DATASETS",
    "Card",
    "DataSettings",
    "Dataset",
    "FoldData",
    "FoldSettings",
    "Modality",
    "Part",
    "check_data",
    "held_out_folds",
    "labelled_mask",
    "open_dataset",
    "open_fold",
]
