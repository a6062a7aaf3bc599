"""The folders that a study is written into: whether they can take it."""

import os
from pathlib import Path

from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem

# What a driver that was killed at once leaves in a folder that holds no study yet.
_LEFT_BEHIND = {"study.toml", "lease", "cache"}


def study_folder(output: Path | None, name: str) -> Path:
    """Return the folder of a study, ``results/<name>`` by default; it need not be there.

    Raises:
        InputError: if it holds something else, or is a file.
    """
    root = _folder(output or Path("results") / name)
    if root.is_dir() and not (root / "study.json").exists():
        foreign = sorted(
            path.name for path in root.iterdir() if path.name not in _LEFT_BEHIND and path.suffix != ".tmp"
        )
        if foreign:
            rule = f"the folder holds no study, but {foreign[0]!r}"
            raise InputError([Problem(str(root), rule, "give a new or an empty folder as --output")])
    return root


def cache_folder(cache: Path | None, root: Path) -> Path:
    """Return the folder of the stage cache, ``cache`` in that of the study by default.

    Raises:
        InputError: if it is a file.
    """
    return root / "cache" if cache is None else _folder(cache)


def figures_folder(output: Path | None, root: Path) -> Path:
    """Return the folder of a study's figures, ``report/figures`` in that of the study by default.

    Raises:
        InputError: if it is a file.
    """
    return root / "report" / "figures" if output is None else _folder(output)


def made_folder(path: Path, flag: str) -> Path:
    """Return a folder after making it where it is not there yet.

    Raises:
        InputError: if the system does not let it be made, or be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_open = os.access(path, os.W_OK | os.X_OK)
        rule = "nothing can be written into this folder"
    except OSError as error:
        is_open, rule = False, f"this folder cannot be made: {(error.strerror or str(error)).lower()}"
    if not is_open:
        raise InputError([Problem(str(path), rule, f"give a folder of yours as {flag}")])
    return path


def _folder(path: Path) -> Path:
    """Return a path that is a folder or can become one."""
    if readable(path).exists() and not path.is_dir():
        raise InputError([Problem(str(path), "this is not a folder", "give another one")])
    return path
