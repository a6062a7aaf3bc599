"""`mmdistill doctor`: what this machine has, and whether a study would run on it."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import mmdistill
from mmdistill.cli.printing import print_json

PACKAGES = ("torch", "ray", "optuna", "POT", "pyarrow", "duckdb", "tensorboard")
OLDEST_PYTHON = (3, 11)
LEAST_MEMORY_GIB = 4.0
LARGEST_DEVIATION = 1e-6
_GIB = 2**30
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARED_MEMORY = Path("/dev/shm")

State = Literal["ok", "warning", "failed"]


class Check(NamedTuple):
    """One thing that was looked at; ``advice`` is empty where all is well."""

    name: str
    state: State
    found: str
    advice: str = ""


def show_doctor(*, as_json: bool) -> int:
    """Print every check; return 1 if one failed."""
    checks = examine()
    if as_json:
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f"; {check.advice}" if check.advice else ""
            print(f"{check.state:<8} {check.name:<{width}}  {check.found}{advice}")
    return int(any(check.state == "failed" for check in checks))


def examine() -> list[Check]:
    """Return the result of every check; one that cannot even be made has failed."""
    found = []
    for name, look in _LOOKS.items():
        try:
            found += list(look())
        except Exception as error:
            found.append(
                Check(name, "failed", f"{type(error).__name__}: {error}", "reinstall with `make install`")
            )
    return found


def _versions() -> Iterable[Check]:
    is_new = sys.version_info >= OLDEST_PYTHON
    needs = "" if is_new else f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed"
    yield Check("python", "ok" if is_new else "failed", platform.python_version(), needs)
    yield Check("mmdistill", "ok", mmdistill.__version__)
    for package in PACKAGES:
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            yield Check(package, "failed", "not installed", "install with `make install`")


def _processors() -> Iterable[Check]:
    usable = len(os.sched_getaffinity(0))
    yield Check("CPUs", "ok", f"{usable} of {os.cpu_count()} usable; as many orders at once")


def _memory() -> Iterable[Check]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in _MEMORY_LIMITS if path.is_file()]
    gib = min([total, *(int(limit) for limit in limits if limit.isdigit())]) / _GIB
    is_enough = gib >= LEAST_MEMORY_GIB
    advice = "" if is_enough else "set resources.concurrent=1"
    yield Check("memory", "ok" if is_enough else "warning", f"{gib:.1f} GiB", advice)


def _torch() -> Iterable[Check]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Check("GPUs", "ok", ", ".join(names) or "none; everything runs on CPUs")
    yield Check("threads", "ok", f"1 per order; torch alone would take {torch.get_num_threads()}")


def _authentication() -> Iterable[Check]:
    from mmdistill.cluster.environment import VARIABLES

    asked, ours = os.environ.get("RAY_AUTH_MODE"), VARIABLES["RAY_AUTH_MODE"]
    note = f" (RAY_AUTH_MODE={asked} of this shell is overruled)" if asked not in {None, ours} else ""
    yield Check("Ray authentication", "ok", f"RAY_AUTH_MODE={ours} for every run{note}")
    yield Check("Ray token", "ok", "new for every run, known to its processes only")


def _temporary_folder() -> Iterable[Check]:
    from mmdistill.cluster.environment import LONGEST_TEMPORARY_FOLDER, temporary_folder

    folder = temporary_folder()
    found = f"{folder.parent}, {shutil.disk_usage(folder.parent).free / _GIB:.1f} GiB free"
    folder.rmdir()
    is_short = len(tempfile.gettempdir()) <= LONGEST_TEMPORARY_FOLDER
    advice = f"TMPDIR is longer than {LONGEST_TEMPORARY_FOLDER} characters, which Ray's sockets cannot have"
    yield Check("temporary folder", "ok" if is_short else "warning", found, "" if is_short else advice)


def _shared_memory() -> Iterable[Check]:
    from mmdistill.cluster.environment import OBJECT_STORE_BYTES

    if not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    advice = "" if free >= OBJECT_STORE_BYTES else "give the container more, or Ray falls back to slow files"
    yield Check("shared memory", "warning" if advice else "ok", f"{free / _GIB:.1f} GiB free", advice)


def _solver() -> Iterable[Check]:
    from mmdistill.transport.reference import deviation_from_pot

    deviation = deviation_from_pot()
    advice = "" if deviation <= LARGEST_DEVIATION else "do not trust transport terms on this machine"
    found = f"agrees with POT to {deviation:.1e} of the largest entry"
    yield Check("transport solver", "failed" if advice else "ok", found, advice)


_LOOKS: dict[str, Callable[[], Iterable[Check]]] = {
    "versions": _versions,
    "CPUs": _processors,
    "memory": _memory,
    "torch": _torch,
    "Ray": _authentication,
    "temporary folder": _temporary_folder,
    "shared memory": _shared_memory,
    "transport solver": _solver,
}
