"""Named points at which a test lets the program fail; nothing happens there otherwise."""

from pathlib import Path


def point(name: str, target: Path | None = None) -> None:
    """Do nothing, or what a test has planned for this point.

    Args:
        name: of the point, ``layer.event``.
        target: the file that is being written there, for a torn write.
    """
