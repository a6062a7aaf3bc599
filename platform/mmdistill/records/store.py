"""Files that appear whole or not at all, and are there after a power cut once the call has returned.

A leftover ``*.tmp`` is what a killed writer left; readers ignore it.
"""

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmdistill.errors import ConflictError, StudyError
from mmdistill.faults import point

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_STORAGE_FAULTS = (
    errno.ENOSPC,
    errno.EIO,
    errno.EROFS,
    errno.EDQUOT,
    errno.EACCES,
    errno.EFBIG,
    errno.ESTALE,
)


class Named(NamedTuple):
    """A file that is called after its content.

    Attributes:
        name: the file's name inside its folder.
        sha256: of the whole content, hexadecimal.
    """

    name: str
    sha256: str


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def is_storage_fault(error: BaseException) -> bool:
    """Return whether an error tells of the disk (full, failing, read-only, forbidden), not of the work."""
    return isinstance(error, OSError) and error.errno in _STORAGE_FAULTS


def put_if_absent(path: Path, content: bytes, what: str | None = None) -> bool:
    """Create a file, durably, unless it is there; return whether this call created it.

    Of several writers at once exactly one creates the file. False means that the same content was there.

    Args:
        path: of the file; its folder is made if it is not there.
        content: the whole of it.
        what: is written, for :mod:`mmdistill.faults`; by default the name of the folder says it.

    Raises:
        ConflictError: if the file holds something else; it is left as it is.
        StudyError: if the file system knows no hard links.
    """
    what = what or path.parent.name
    with _written(path.parent, content, what) as draft:
        try:
            os.link(draft, path)
        except FileExistsError:
            _require_same(path, content)
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise StudyError(
                f"{path.parent} has no hard links ({error.strerror}); use another disk"
            ) from error
        point(f"{what}.committed", path)
    _sync_folder(path.parent)
    return True


def put_named(folder: Path, stem: str, suffix: str, content: bytes) -> Named:
    """Write a file called ``<stem>-<first 16 of its SHA-256><suffix>``; writing it again changes nothing."""
    sha256 = sha256_of(content)
    name = f"{stem}-{sha256[:16]}{suffix}"
    put_if_absent(folder / name, content)
    return Named(name, sha256)


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file whose SHA-256 is known.

    Raises:
        StudyError: if the file is missing or holds something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; restore it from a backup") from None
    found = sha256_of(content)
    if found != sha256:
        raise StudyError(
            f"{path} is damaged: SHA-256 is {found}, but must be {sha256}; restore it from a backup"
        )
    return content


def replace_atomically(path: Path, content: bytes, what: str | None = None) -> None:
    """Write a derived file; readers see the old content or the new, never a mixture.

    ``what`` is as in :func:`put_if_absent`.
    """
    what = what or path.parent.name
    with _written(path.parent, content, what) as draft:
        draft.replace(path)
        point(f"{what}.committed", path)
    _sync_folder(path.parent)


def link_atomically(source: Path, path: Path) -> None:
    """Give a file a second name, in place of whatever had that name."""
    draft = path.parent / f"{uuid.uuid4().hex}.tmp"
    try:
        draft.hardlink_to(source)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync_folder(path.parent)


def file_names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, sorted, without ``*.tmp``; none if there is no folder."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.endswith(".tmp"))
    return []


@contextlib.contextmanager
def _written(folder: Path, content: bytes, what: str) -> Iterator[Path]:
    point(f"{what}.draft", folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{uuid.uuid4().hex}.tmp"
    # Not `tempfile`: its files are private, ours follow the umask.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            point(f"{what}.written", draft)
            os.fsync(descriptor)
        point(f"{what}.commit", draft)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _require_same(path: Path, content: bytes) -> None:
    there = path.read_bytes()
    if there != content:
        raise ConflictError(
            f"{path} already holds something else: SHA-256 is {sha256_of(there)}, not {sha256_of(content)}"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
