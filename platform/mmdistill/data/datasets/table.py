"""Any Parquet file with a card beside it.

One row per sample: ``x_<modality>`` lists of float32 (flattened row-major), ``label`` or the columns that the
card's ``targets`` name, ``split`` (train, val, test) and ``group`` (subject, speaker or row number).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdistill.data.card import Card, CardFile, read_card
from mmdistill.data.dataset import DATASETS, Dataset
from mmdistill.data.parquet import Columns
from mmdistill.data.samples import Samples, Strings
from mmdistill.errors import DataError, Problem
from mmdistill.settings import digest


@DATASETS.register("table")
class Table(Dataset):
    """Rows of a Parquet file.

    Attributes:
        path: of a ``card.json``, or of the folder that holds it.
    """

    path: str

    def card(self) -> Card:
        """Return the card at ``path``."""
        return read_card(Path(self.path)).card

    def samples(self, *, with_test: bool = True, modalities: Sequence[str] | None = None) -> Samples:
        """Return the rows; a row is called by its index in the file.

        The fingerprint covers the file as a whole and the shapes on the card, so it does not depend on what
        is read. Features are read lazily: only the wanted columns, and no test row unless ``with_test``.
        """
        read = read_card(Path(self.path))
        path = _parquet_path(read)
        sha256 = _checked_sha256(path, read)
        columns = Columns(path, read.card)
        split = columns.split()
        labels, groups = columns.labels(), columns.strings("group")
        columns.problems += _count_problems(read, split)
        keep_N = np.full(len(split), True) if with_test else split != "test"
        inputs = columns.features(list(read.card.modalities) if modalities is None else modalities, keep_N)
        if columns.problems:
            raise DataError(columns.problems)
        return Samples(
            card=read.card,
            inputs=inputs,
            labels=labels[keep_N],
            split=split[keep_N],
            groups=groups[keep_N],
            rows=np.arange(len(split)).astype(np.str_)[keep_N],
            fingerprint=digest([sha256, _meaning(read.card)]),
        )

    def version(self) -> str:
        """Return sizes and modification times of the card and the file."""
        read = read_card(Path(self.path))
        states = [file.stat() for file in (read.path, _parquet_path(read))]
        return " ".join(f"{state.st_size}@{state.st_mtime_ns}" for state in states)


def _parquet_path(read: CardFile) -> Path:
    folder = read.path.parent.resolve()
    path = (folder / (read.facts.file or f"{read.card.name}.parquet")).resolve()
    where = f"{read.path}: file"
    if not path.is_relative_to(folder):
        rule = f"the data must lie in the folder of its card, but `file` is {read.facts.file!r}"
        raise DataError([Problem(where, rule, "move the file beside its card")])
    if not path.is_file():
        mend = "put it beside its card or correct `file`"
        raise DataError([Problem(where, f"there is no file {path.name!r} in {read.path.parent}", mend)])
    return path


def _checked_sha256(path: Path, read: CardFile) -> str:
    promised = read.facts
    size = path.stat().st_size
    mend = "fetch the file again, or correct the card if the change is meant"
    if promised.bytes is not None and promised.bytes != size:
        rule = f"the card promises {promised.bytes} bytes, but the file has {size}"
        raise DataError([Problem(str(path), rule, mend)])
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if promised.sha256 is not None and promised.sha256.lower() != found:
        rule = f"the card promises SHA-256 {promised.sha256[:12]}…, but the file has {found[:12]}…"
        raise DataError([Problem(str(path), rule, mend)])
    return found


def _count_problems(read: CardFile, split: Strings) -> list[Problem]:
    problems, promised = [], read.facts
    mend = "correct the card or the file"
    if promised.n_samples is not None and promised.n_samples != len(split):
        rule = f"the card promises {promised.n_samples} rows, but the file has {len(split)}"
        problems.append(Problem(f"{read.path}: n_samples", rule, mend))
    for name, count in (promised.split_counts or {}).items():
        found = int((split == name).sum())
        if found != count:
            rule = f"the card promises {count} rows, but the file has {found}"
            problems.append(Problem(f"{read.path}: split_counts.{name}", rule, mend))
    return problems


def _meaning(card: Card) -> list[object]:
    """Return what of a card changes the arrays, as opposed to their description."""
    shapes = {name: [card.column(name), *part.shape] for name, part in card.modalities.items()}
    return [card.task, card.classes, list(card.targets), shapes]
