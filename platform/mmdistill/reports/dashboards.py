"""What is looked at, as data: the named queries, charts, page and TensorBoard layout of ``dashboards/``."""

from pathlib import Path

import mmdistill

DASHBOARDS = Path(mmdistill.__file__).parent / "dashboards"


def dashboard(*parts: str) -> Path:
    """Return the path of a file or folder below ``dashboards/``."""
    return DASHBOARDS.joinpath(*parts)
