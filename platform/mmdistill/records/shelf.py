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
    """A folder of records by name.

    Since a record never changes, what was read once is kept; the values are shared between callers, who leave
    them as they are. The folder is listed once: what other processes add later is found when it is asked for
    by name, and listed from then on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Any]] = {}
        self._listed: dict[str, None] | None = None

    def put(self, name: str, body: Mapping[str, Any]) -> bool:
        """Commit a record, durably; return False, and change nothing, if one is there already."""
        try:
            created = put_if_absent(self.path(name), seal(body), self.folder.name)
        except ConflictError:
            created = False
        self._note(name)
        return created

    def path(self, name: str) -> Path:
        """Return where the record called ``name`` is or would be."""
        return self.folder / f"{file_stem(name)}{_SUFFIX}"

    def load(self, name: str) -> dict[str, Any]:
        """Return a record, read anew and not kept; errors as with ``[name]``."""
        path = self.path(name)
        try:
            body = unseal(path, path.read_bytes())
        except FileNotFoundError:
            raise KeyError(name) from None
        self._note(name)
        return body

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return a record.

        Raises:
            KeyError: if there is none.
            StudyError: if the file is torn or was altered.
        """
        if name not in self._read:
            self._read[name] = self.load(name)
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name in self._read or name in (self._listed or ()):
            return True
        there = self.path(name).exists()
        if there:
            self._note(name)
        return there

    def __iter__(self) -> Iterator[str]:
        """Return the names of the records: those of the folder in the order of their files, then later ones.

        Raises:
            StudyError: naming a file that is no record.
        """
        return iter(list(self._list()))

    def __len__(self) -> int:
        return len(self._list())

    def _list(self) -> dict[str, None]:
        if self._listed is None:
            self._listed = dict.fromkeys(self._names())
        return self._listed

    def _note(self, name: str) -> None:
        if self._listed is not None:
            self._listed[name] = None

    def _names(self) -> Iterator[str]:
        for file in file_names(self.folder):
            if not file.endswith(_SUFFIX):
                raise StudyError(f"{self.folder / file} is no record of this study; remove it")
            yield unquote(file.removesuffix(_SUFFIX))
