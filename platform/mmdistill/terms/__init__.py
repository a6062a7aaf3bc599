"""Weighted, searchable parts of a student's objective: a loss with its settings, ranges and own weights.

One file per term; :data:`TERMS` finds them by discovery.
"""

from mmdistill.registry import import_submodules
from mmdistill.terms.base import (
    TERMS,
    Batch,
    Labels,
    Layers,
    Masked,
    Pool,
    Shapes,
    Term,
    TermSettings,
    TermValue,
)

import_submodules(__name__)

__all__ = [
    "TERMS",
    "Batch",
    "Labels",
    "Layers",
    "Masked",
    "Pool",
    "Shapes",
    "Term",
    "TermSettings",
    "TermValue",
]
