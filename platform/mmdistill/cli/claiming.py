"""A second driver of a study is refused at once, before torch and Ray are loaded."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from mmdistill.records.lease import require_free


def refuse_second_driver(file: Path, edits: Sequence[str], output: Path | None) -> None:
    """Return if nobody drives the study, or if its file does not say plainly which folder it has.

    The run itself looks again, when it takes the study; this is for the quick answer.

    Raises:
        LockedError: naming who drives it.
    """
    try:
        root = output or Path("results") / _name(file, edits)
        if not root.is_dir():
            return
    except (OSError, ValueError, KeyError, TypeError):
        return  # The run will say what is wrong with the file or the folder.
    require_free(root)


def _name(file: Path, edits: Sequence[str]) -> str:
    named = [edit.partition("=")[2] for edit in edits if edit.startswith("name=")]
    return named[-1] if named else tomllib.loads(file.read_text("utf-8-sig"))["name"]
