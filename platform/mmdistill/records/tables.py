"""The tables of a study: live from its records, or compacted to one Parquet file each.

``compact/<table>.parquet`` is for everybody. The manifest names the same files by their content, in
``compact/files/``: those of the newest two manifests stay, so a reader that has read a manifest finds what it
lists although the tables are written anew meanwhile. Each file verifies against its manifest or is not used.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmdistill.errors import StudyError
from mmdistill.faults import point
from mmdistill.records.finals import Final, parquet_bytes, parquet_table
from mmdistill.records.rows import (
    TABLES,
    AttemptRow,
    EpochRow,
    MatrixRow,
    OpeningRow,
    PredictionRow,
    Row,
    StageRow,
    StudyRow,
    TrialRow,
    arrow_table,
)
from mmdistill.records.schema import SCHEMA_VERSION
from mmdistill.records.shelf import Shelf
from mmdistill.records.store import (
    file_names,
    link_atomically,
    read_verified,
    replace_atomically,
    sha256_of,
)
from mmdistill.records.study import StudyFolder

# Metrics that may differ between two runs of one study, beside the columns in `Row.varying`.
VARYING_METRICS = ("latency",)
# What a table is made of; a manifest that names all these files is up to date.
_SOURCES = ("revisions", "finals", "withdrawn", "attempts", "openings")
_KEPT_MANIFESTS = 2
PLAIN = Path("compact")
SNAPSHOTS = PLAIN / "files"


class CompactFile(NamedTuple):
    """One file of ``compact/``.

    Attributes:
        table: the table's name.
        file: the file's name in ``compact/files``.
        rows: how many rows it holds.
        bytes: its size.
        sha256: of its content.
    """

    table: str
    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What ``compact/`` holds, and what it was made from.

    Attributes:
        number: from 1; the highest one counts.
        schema_version: that of all files.
        files: one per table.
        sources: names of the records that went in, by folder.
    """

    number: int
    schema_version: int
    files: tuple[CompactFile, ...]
    sources: dict[str, list[str]]


def tables(folder: StudyFolder) -> dict[str, pa.Table]:
    """Return every table, from the records, sorted by the columns in ``Row.order``.

    Raises:
        StudyError: naming a record or a side file that is torn, damaged or altered.
    """
    finals = list(folder.finals())
    live = {
        "trials": arrow_table(TrialRow, [row for final in finals for row in final.trials]),
        "stages": arrow_table(StageRow, [row for final in finals for row in final.stages]),
        "epochs": _sides(folder, finals, "curves", EpochRow),
        "predictions": _sides(folder, finals, "predictions", PredictionRow),
        "matrices": _sides(folder, finals, "matrices", MatrixRow),
        "attempts": arrow_table(AttemptRow, folder.attempts()),
        "studies": arrow_table(StudyRow, [revision.row for revision in folder.revisions]),
        "test_openings": arrow_table(OpeningRow, folder.openings()),
    }
    return {name: _sorted(name, table) for name, table in live.items()}


def _sides(folder: StudyFolder, finals: Sequence[Final], name: str, kind: type[Row]) -> pa.Table:
    having = [final for final in finals if any(side.folder == name for side in final.sides)]
    return pa.concat_tables([arrow_table(kind, []), *(folder.side(final, name) for final in having)])


def _sorted(name: str, table: pa.Table) -> pa.Table:
    return table.sort_by([(column, "ascending") for column in TABLES[name].order]).combine_chunks()


class Rebuilt(NamedTuple):
    """What came of deriving the tables again.

    Attributes:
        before: content hash of the tables that were there; None if they were absent or damaged.
        after: content hash of the tables that are there now.
        is_outdated: whether records had come since the former tables were written, so that the hashes may
            differ.
        manifest: what there is now.
    """

    before: str | None
    after: str
    is_outdated: bool
    manifest: Manifest


def rebuild(folder: StudyFolder) -> Rebuilt:
    """Derive every table again, whatever state the former ones are in; the records stay as they are.

    For who holds the lease only.

    Raises:
        StudyError: naming a record or a side file that is torn, damaged or altered.
    """
    former = _compact(folder)
    before = None if former is None else content_hash(_parsed(former[1]))
    is_outdated = former is None or former[0].sources != _sources(folder)
    manifest = _compacted(folder)
    _publish(folder, manifest)
    return Rebuilt(before, content_hash(latest(folder)), is_outdated, manifest)


def compact(folder: StudyFolder) -> Manifest:
    """Write every table to ``compact/``, then a manifest; return the manifest, the old one if it still holds.

    The same records give the same bytes. For the driver only: readers may be there, other writers not.
    """
    folder.fence()
    there = _newest(folder)
    manifest = _compacted(folder) if there is None else there[0]
    if not all(_is_published(folder, file) for file in manifest.files):
        _publish(folder, manifest)
    return manifest


def _compacted(folder: StudyFolder) -> Manifest:
    # The sources first: what workers add from now on makes the manifest outdated, never wrong.
    sources = _sources(folder)
    found = tables(StudyFolder.open(folder.root))
    files = [_written(folder, name, table) for name, table in found.items()]
    shelf = _manifests(folder)
    number = max(_numbers(shelf), default=0) + 1
    manifest = Manifest(number, SCHEMA_VERSION, tuple(files), sources)
    folder.fence()
    shelf.put(str(number), {**manifest._asdict(), "files": [file._asdict() for file in files]})
    return manifest


def _publish(folder: StudyFolder, manifest: Manifest) -> None:
    """Give the tables their plain names, and remove those that no recent manifest lists."""
    for file in manifest.files:
        point("compact.publish", _plain(folder, file))
        link_atomically(_snapshots(folder) / file.file, _plain(folder, file))
    shelf = _manifests(folder)
    listed: set[str] = set()
    for number in sorted(_numbers(shelf))[-_KEPT_MANIFESTS:]:
        with contextlib.suppress(StudyError, KeyError, TypeError):
            listed |= {file.file for file in parsed_manifest(shelf[str(number)]).files}
    for name in set(file_names(_snapshots(folder))) - listed:
        point("compact.tidy", _snapshots(folder) / name)
        (_snapshots(folder) / name).unlink(missing_ok=True)


def _is_published(folder: StudyFolder, file: CompactFile) -> bool:
    try:
        return _plain(folder, file).samefile(_snapshots(folder) / file.file)
    except FileNotFoundError:
        return False


def _snapshots(folder: StudyFolder) -> Path:
    return folder.root / SNAPSHOTS


def _plain(folder: StudyFolder, file: CompactFile) -> Path:
    return folder.root / PLAIN / f"{file.table}.parquet"


def latest(folder: StudyFolder) -> dict[str, pa.Table]:
    """Return every table: the compact ones if they verify and miss no record, else those of the records."""
    there = _newest(folder)
    return tables(folder) if there is None else _parsed(there[1])


def in_place(folder: StudyFolder) -> dict[str, tuple[Path, int]] | None:
    """Return by table the compact file and its number of rows, for who reads the files where they are.

    None if there are none, or if a record has come since. Sizes are compared, hashes are not: of a table too
    large to load that would take longer than most questions; `mmdistill verify` computes them.
    """
    manifest = _manifest(folder)
    if manifest is None or manifest.sources != _sources(folder):
        return None
    root = _snapshots(folder)
    found = {file.table: (root / file.file, file) for file in manifest.files}
    try:
        is_whole = all(path.stat().st_size == file.bytes for path, file in found.values())
    except FileNotFoundError:
        return None
    return {name: (path, file.rows) for name, (path, file) in found.items()} if is_whole else None


def _parsed(content: Mapping[str, bytes]) -> dict[str, pa.Table]:
    return {name: parquet_table(content[name]) for name in TABLES}


def _newest(folder: StudyFolder) -> tuple[Manifest, dict[str, bytes]] | None:
    """Return the newest manifest and the content of its files, if it is whole and misses no record."""
    found = _compact(folder)
    return found if found is not None and found[0].sources == _sources(folder) else None


def _compact(folder: StudyFolder) -> tuple[Manifest, dict[str, bytes]] | None:
    """Return the newest manifest and the content of its files, if it is whole."""
    manifest, root = _manifest(folder), _snapshots(folder)
    try:
        files = () if manifest is None else manifest.files
        content = {file.table: read_verified(root / file.file, file.sha256) for file in files}
    except StudyError:
        return None
    return None if manifest is None else (manifest, content)


def _manifest(folder: StudyFolder) -> Manifest | None:
    """Return the newest manifest, if it is whole and of this version."""
    shelf = _manifests(folder)
    try:
        manifest = parsed_manifest(shelf[str(max(_numbers(shelf)))])
    except (ValueError, KeyError, TypeError, StudyError):
        return None  # Derived files: whatever is wrong with them, the records have the answer.
    is_current = manifest.schema_version == SCHEMA_VERSION
    return manifest if is_current and {file.table for file in manifest.files} == set(TABLES) else None


def parsed_manifest(body: Mapping[str, Any]) -> Manifest:
    """Return the manifest in a record; TypeError or KeyError if it is none."""
    return Manifest(**{**body, "files": tuple(CompactFile(**file) for file in body["files"])})


def _manifests(folder: StudyFolder) -> Shelf:
    return Shelf(folder.root / "manifest")


def _numbers(shelf: Shelf) -> list[int]:
    return [int(name) for name in shelf if name.isdigit()]


def _sources(folder: StudyFolder) -> dict[str, list[str]]:
    return {name: file_names(folder.root / name) for name in _SOURCES}


def _written(folder: StudyFolder, name: str, table: pa.Table) -> CompactFile:
    content = parquet_bytes(table)
    sha256 = sha256_of(content)
    file = f"{name}-{sha256[:16]}.parquet"
    # Called after its content: what may be there already is the same, or damaged.
    replace_atomically(_snapshots(folder) / file, content, "compact")
    return CompactFile(name, file, table.num_rows, len(content), sha256)


def scientific(table: pa.Table) -> pa.Table:
    """Return a table without what may differ between two runs of one study: times, hosts, latencies."""
    name = table.schema.metadata[b"mmdistill.table"].decode()
    kept = table.drop_columns([column for column in TABLES[name].varying if column in table.column_names])
    if "metrics" not in kept.column_names:
        return kept
    place = kept.column_names.index("metrics")
    return kept.set_column(place, "metrics", _without_varying(kept["metrics"].combine_chunks()))


def _without_varying(metrics: pa.Array) -> pa.Array:
    names = [field.name for field in metrics.type if not any(odd in field.name for odd in VARYING_METRICS)]
    if not names:
        return pa.StructArray.from_arrays([pa.nulls(len(metrics), pa.string())], names=["none"])
    return pa.StructArray.from_arrays([metrics.field(name) for name in names], names)


def content_hash(found: Mapping[str, pa.Table]) -> str:
    """Return the SHA-256 of the scientific content of the tables.

    ``attempts`` does not count: how often something was begun is no result. Comparable between tables
    written by the same version of pyarrow.
    """
    parts = [
        parquet_bytes(scientific(_sorted(name, found[name]))) for name in sorted(set(found) - {"attempts"})
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()
