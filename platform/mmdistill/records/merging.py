"""Studies from several machines side by side in one new folder, each with a record of where it came from.

A study keeps the name of its folder. Two of one name that differ are called ``NAME@HOST`` by the machines
that began them. Two of equal name and content are one study that was computed twice: the first is kept, the
record names both.
"""

import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mmdistill.errors import InputError, MmdistillError, Problem
from mmdistill.records.audit import audit
from mmdistill.records.sealed import seal
from mmdistill.records.store import put_if_absent
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import content_hash, latest
from mmdistill.redaction import redacted, redacted_tree

ORIGINS = "origins.json"
# The stage cache can be computed again; who drove a study has no say over its copy.
_LEFT_OUT = ("cache", "lease", "*.tmp")
_WHOLE = "merge it once `mmdistill verify` finds no problem"


class Origin(NamedTuple):
    """Where one study came from.

    Attributes:
        study: its folder below the merged one.
        source: the folder it was copied from.
        host: the machine that began it.
        content_hash: SHA-256 of its scientific content, see :func:`mmdistill.records.tables.content_hash`.
        git_commit: the commit of the code that began it, where known.
        is_copied: False if an equal study is there under the same name already.
    """

    study: str
    source: str
    host: str
    content_hash: str
    git_commit: str | None
    is_copied: bool


class _Found(NamedTuple):
    root: Path
    host: str
    content_hash: str
    git_commit: str | None


def merge(output: Path, studies: Sequence[Path], command: str) -> list[Origin]:
    """Copy studies into the new folder ``output``; nothing is there before all of it is.

    Every hash of every study is computed before it is copied, and again from the copy. The stage caches stay
    behind. ``origins.json`` says what came from where, when, and by which command.

    Args:
        output: a folder that is not there, or is empty.
        studies: folders of studies, which may be unfinished.
        command: the command line that asks for it.

    Raises:
        InputError: with every problem at once; nothing was written then.
    """
    problems = [*_of_output(output), *_of_number(studies)]
    found: list[_Found] = []
    for root in studies:
        unsound = _unsound(root)
        problems += unsound
        if not unsound:
            found.append(_found(root))
    origins = _named(found)
    problems += _same_names(origins)
    if problems:
        raise InputError(problems)
    _copy(output, origins, command)
    return origins


def _of_output(output: Path) -> Iterator[Problem]:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        yield Problem(str(output), "there is something here already", "give a new folder")


def _of_number(studies: Sequence[Path]) -> Iterator[Problem]:
    if not studies:
        yield Problem("STUDIES", "no study is named", "name at least one")


def _unsound(root: Path) -> list[Problem]:
    """Return what keeps a study from being copied; its stage cache may be anything."""
    try:
        return list(audit(root, root / "no-cache").problems)
    except InputError as error:
        return list(error.problems)
    except MmdistillError as error:
        return [Problem(str(root), str(error), _WHOLE)]


def _found(root: Path) -> _Found:
    folder = StudyFolder.open(root)
    return _Found(root, folder.row.host, content_hash(latest(folder)), folder.row.git_commit)


def _named(found: Sequence[_Found]) -> list[Origin]:
    """Return the studies under the names they get: an equal one shares the name of the first."""
    first = {(study.root.resolve().name, study.content_hash): study for study in reversed(found)}
    times = Counter(name for name, _ in first)
    origins = []
    for study in found:
        name = study.root.resolve().name
        kept = first[name, study.content_hash]
        shown = name if times[name] == 1 else f"{name}@{kept.host}"
        source = str(study.root.resolve())
        origin = Origin(shown, source, study.host, study.content_hash, study.git_commit, kept is study)
        origins.append(origin)
    return origins


def _same_names(origins: Sequence[Origin]) -> Iterator[Problem]:
    sources: dict[str, list[str]] = {}
    for origin in origins:
        if origin.is_copied:
            sources.setdefault(origin.study, []).append(origin.source)
    for name, places in sources.items():
        if len(places) > 1:
            shown = ", ".join(places)
            rule = f"{len(places)} different studies of one machine would be called {name!r}: {shown}"
            yield Problem(name, rule, "rename the folder of all but one")


def _copy(output: Path, origins: Sequence[Origin], command: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.parent / f"{output.name}-{uuid.uuid4().hex}.tmp"
    try:
        problems = []
        for origin in origins:
            if origin.is_copied:
                ignore = shutil.ignore_patterns(*_LEFT_OUT)
                shutil.copytree(origin.source, draft / origin.study, ignore=ignore)
                problems += _unsound(draft / origin.study)
        if problems:
            rule, mend = "a study changed while it was copied", "merge again once its driver has ended"
            raise InputError([Problem(problem.where, rule, mend) for problem in problems])
        put_if_absent(draft / ORIGINS, seal(_record(origins, command)), "origins")
        draft.replace(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _record(origins: Sequence[Origin], command: str) -> dict[str, object]:
    return {
        "merged_at": datetime.now(UTC).isoformat(),
        "host": socket.gethostname(),
        "command": redacted(command),
        "studies": [redacted_tree(origin._asdict()) for origin in origins],
    }
