"""Ablations and hyperparameter searches for multimodal knowledge distillation, on Ray."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdistill.reports.results import Results

__version__ = "0.1.0"


def open(path: str | os.PathLike[str]) -> Results:  # noqa: A001
    """Return what is on record in the folder of a study, or in a folder of such folders.

    ``mmdistill.open("results/quickstart").sql("FROM trials")`` is an Arrow table; ``.pl()`` and ``.df()``
    make it one of Polars or pandas. A study may still be running.
    """
    # By name: `import mmdistill` stays quick, and no layer comes to depend on the one above it.
    results: Results = importlib.import_module("mmdistill.reports.results").Results(Path(path))
    return results
