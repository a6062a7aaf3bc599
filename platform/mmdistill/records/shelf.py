"""A folder of named JSON records, each written once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from mmdistill.errors import ConflictError, StudyError
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.store import file_names, put_if_absent

_SUFFIX = ".json"


def file_stem(name: str) -> str:
    """Return a name as a part of a file name: letters, digits and ``-._~`` stay, others become ``%XX``."""
    return quote(name, safe="")


class Shelf(Mapping[str, dict[str, Any]]):
    """A folder of records by name; what was read once is kept, since a record never changes.

    The values are shared between callers, who leave them as they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    def put(self, name: str, body: Mapping[str, Any]) -> bool:
        """Commit a record, durably; return False, and change nothing, if one is there already."""
        try:
            return put_if_absent(self.path(name), seal(body))
        except ConflictError:
            return False

    def path(self, name: str) -> Path:
        """Return where the record called ``name`` is or would be."""
        return self.folder / f"{file_stem(name)}{_SUFFIX}"

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return a record.

        Raises:
            KeyError: if there is none.
            StudyError: if the file is torn or was altered.
        """
        if name not in self._read:
            path = self.path(name)
            try:
                self._read[name] = unseal(path, path.read_bytes())
            except FileNotFoundError:
                raise KeyError(name) from None
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._read or self.path(name).exists())

    def __iter__(self) -> Iterator[str]:
        """Return the names of the records, in the order of their files.

        Raises:
            StudyError: naming a file that is no record.
        """
        for file in file_names(self.folder):
            if not file.endswith(_SUFFIX):
                raise StudyError(f"{self.folder / file} is no record of this study; remove it")
            yield unquote(file.removesuffix(_SUFFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)
