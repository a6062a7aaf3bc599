"""Which code this process runs: this package, its commit, and what its last bits hang on."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import mmdistill

SOURCE = Path(mmdistill.__file__).resolve().parents[2]


class Code(NamedTuple):
    """Versions, and the commit of the source tree where the package runs from one."""

    package_version: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    torch: str


@functools.cache
def this_code() -> Code:
    """Return what this process runs, as it was when first asked."""
    return Code(mmdistill.__version__, *_git(), platform.python_version(), installed("torch"))


def installed(package: str) -> str:
    """Return the installed version of a package, or ``not installed``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git() -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the source tree this package runs from, where there is one."""
    if not (SOURCE / ".git").exists():
        return None, None
    try:
        return _run("rev-parse", "HEAD"), bool(_run("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _run(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
