"""One file per data set; each registers itself in ``DATASETS`` and is found by discovery."""

from mmdistill.registry import import_submodules

import_submodules(__name__)
