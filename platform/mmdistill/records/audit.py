"""Is everything a study left still what was written? Every hash is computed again; nothing is changed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from mmdistill.errors import Problem, StudyError
from mmdistill.records.finals import Final, parsed_final
from mmdistill.records.rows import OpeningRow
from mmdistill.records.schema import from_json
from mmdistill.records.sealed import unseal
from mmdistill.records.store import file_names, read_verified
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import PLAIN, SNAPSHOTS, Manifest, parsed_manifest

_BACKUP = "restore it from a backup"
_COMPUTED_AGAIN = "remove it; `mmdistill run` computes it again where it is needed"
_DERIVED = "write the tables again with `mmdistill rebuild`"
_RECORDS = ("lease", "revisions", "decisions", "selection", "attempts", "withdrawn")
_SIDES = ("curves", "predictions", "matrices")
# Folder of the stage cache in which trainings keep their snapshots.
CHECKPOINTS = "checkpoints"


class Audit(NamedTuple):
    """What was found.

    Attributes:
        checked: files that were looked at, by kind.
        leftovers: files that nothing refers to, left by writers that were killed, by folder; no harm.
        problems: files that are not what was written, and results that contradict each other.
    """

    checked: dict[str, int]
    leftovers: dict[str, int]
    problems: tuple[Problem, ...]


def audit(root: Path, cache: Path) -> Audit:
    """Return the state of the study in ``root`` and of the stage cache.

    Raises:
        InputError: if there is no study.
        StudyError: if one of its revisions cannot be read.
    """
    StudyFolder.open(root)
    look = _Look()
    look.checked["study"] += 1
    for name in _RECORDS:
        list(look.records(root / name))
    openings = list(look.records(root / "openings"))
    finals = list(_finals(root, look))
    _check_sides(root, finals, look)
    look.problems += _contradictions(root, finals, openings)
    _check_tables(root, look)
    _check_cache(cache, look)
    for folder in [root, *root.iterdir(), root / SNAPSHOTS, cache]:
        if folder.is_dir() and any(folder.glob("*.tmp")):
            look.leftovers[folder.name] += len(list(folder.glob("*.tmp")))
    return Audit(dict(look.checked), dict(look.leftovers), tuple(look.problems))


def _record(path: Path) -> dict[str, Any]:
    return unseal(path, path.read_bytes())


class _Look:
    """Reads files, counts them, and notes what is wrong."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.leftovers: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def at(self, kind: str, path: Path, read: Callable[[], Any], mend: str = _BACKUP) -> Any:
        """Return what reading a file gives, or None after noting what is wrong with it."""
        self.checked[kind] += 1
        try:
            return read()
        except StudyError as error:
            rule = str(error).removeprefix(f"{path} ").split("; ")[0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            rule = f"cannot be read ({type(error).__name__}: {error})"
        self.problems.append(Problem(str(path), rule, mend))
        return None

    def records(
        self, folder: Path, mend: str = _BACKUP, parsed: Callable[[Path], Any] = _record
    ) -> Iterator[Any]:
        """Yield what ``parsed`` makes of the sound records of a folder."""
        for name in file_names(folder):
            found = self.at(folder.name, folder / name, partial(parsed, folder / name), mend)
            if found is not None:
                yield found


def _finals(root: Path, look: _Look) -> Iterator[Final]:
    """Yield the sound results that count, those that were withdrawn left out."""
    withdrawn = {tuple(name.removesuffix(".json").split("~")) for name in file_names(root / "withdrawn")}
    for order_id, number, final in look.records(root / "finals", parsed=_final):
        if (order_id, str(number + 1)) not in withdrawn:
            yield final


def _final(path: Path) -> tuple[str, int, Final]:
    stem, _, number = path.stem.partition("~")
    return stem, int(number or 0), parsed_final(path, unquote(stem), _record(path))


def _check_sides(root: Path, finals: Sequence[Final], look: _Look) -> None:
    listed = {(side.folder, side.file): side for final in finals for side in final.sides}
    for (folder, name), side in listed.items():
        path = root / folder / name
        look.at(folder, path, partial(read_verified, path, side.sha256))
    for folder in _SIDES:
        left = [name for name in file_names(root / folder) if (folder, name) not in listed]
        if left:
            look.leftovers[folder] += len(left)


def _contradictions(
    root: Path, finals: Sequence[Final], openings: Sequence[dict[str, Any]]
) -> Iterator[Problem]:
    """Yield results that count twice, and readings of the test split that the ledger does not know."""
    orders: dict[str, list[str]] = {}
    for final in finals:
        for trial in final.trials:
            orders.setdefault(trial.trial_id, []).append(final.order_id)
    for trial_id, found in orders.items():
        if len(found) > 1:
            rule = f"trial {trial_id} is in several results: {', '.join(found)}"
            yield Problem(str(root / "finals"), rule, _BACKUP)
    known = {from_json(OpeningRow, row).trial_id for body in openings for row in body["rows"]}
    for final in finals:
        missing = [t.trial_id for t in final.trials if t.phase == "test" and t.trial_id not in known]
        if missing:
            rule = f"the ledger of test openings has no entry for {', '.join(missing)} of {final.order_id}"
            yield Problem(str(root / "openings"), rule, _BACKUP)


def _check_tables(root: Path, look: _Look) -> None:
    manifests: list[Manifest] = list(look.records(root / "manifest", _DERIVED, _manifest))
    newest = max(manifests, key=lambda manifest: manifest.number, default=None)
    for file in newest.files if newest is not None else ():
        for path in (root / SNAPSHOTS / file.file, root / PLAIN / f"{file.table}.parquet"):
            look.at("compact", path, partial(read_verified, path, file.sha256), _DERIVED)


def _manifest(path: Path) -> Manifest:
    return parsed_manifest(_record(path))


def _check_cache(cache: Path, look: _Look) -> None:
    payloads = set()
    for name in file_names(cache):
        if name.endswith(".json"):
            payloads.add(look.at("cache", cache / name, partial(_entry, cache / name), _COMPUTED_AGAIN))
    left = [name for name in file_names(cache) if (cache / name).is_file() and name not in payloads]
    left = [name for name in left if not name.endswith(".json")]
    if left:
        look.leftovers[cache.name] += len(left)
    # Of trainings that did not end; one that did has cleared its own.
    snapshots = [path for path in (cache / CHECKPOINTS).rglob("*") if path.is_file()]
    if snapshots:
        look.leftovers[CHECKPOINTS] += len(snapshots)


def _entry(mark: Path) -> str:
    """Return the name of the tensors of a cache entry, verified."""
    content = _record(mark)
    if content["key"] != mark.stem:
        raise StudyError(f"{mark} belongs to the stage {content['key']}")
    read_verified(mark.parent / content["tensors"], content["sha256"])
    return str(content["tensors"])
