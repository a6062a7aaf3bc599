"""Designs generate arms from arms; one file per design, found by discovery."""

from mmdistill.registry import import_submodules
from mmdistill.studies.designs.base import DESIGNS, Base, Design

import_submodules(__name__)

__all__ = ["DESIGNS", "Base", "Design"]
