"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmdistill.errors import ConflictError, StudyError
from mmdistill.records import store
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.store import file_names, put_if_absent, put_named, read_verified, replace_atomically

PLATFORM = Path(store.__file__).parents[2]
RACER = """
import sys, time
from pathlib import Path
from mmdistill.errors import ConflictError
from mmdistill.records.store import put_if_absent
folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / f"{me}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
won = 0
for n in range(150):
    try:
        won += put_if_absent(folder / "out" / f"{n}", f"{me} {n}".encode())
    except ConflictError:
        pass
print(won)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_first_writer_wins_and_the_same_content_is_no_conflict(tmp_path):
    path = tmp_path / "new" / "a.json"
    assert put_if_absent(path, b"one")
    assert not put_if_absent(path, b"one")
    with pytest.raises(ConflictError) as caught:
        put_if_absent(path, b"two")
    assert path.read_bytes() == b"one"
    for part in (str(path), hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()):
        assert part in str(caught.value)
    assert names(path.parent) == ["a.json"]


def test_of_two_racing_processes_exactly_one_creates_each_file(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, tmp_path, me], env=environment, stdout=subprocess.PIPE, text=True
        )
        for me in ("a", "b")
    ]
    while len(list(tmp_path.glob("*.ready"))) < 2:
        assert all(racer.poll() is None for racer in racers)
    (tmp_path / "go").touch()
    wins = [int(racer.communicate(timeout=30)[0]) for racer in racers]
    assert sum(wins) == 150
    owners = [(tmp_path / "out" / f"{n}").read_text().split() for n in range(150)]
    assert [number for _, number in owners] == [str(n) for n in range(150)]
    assert sum(owner == "a" for owner, _ in owners) == wins[0]
    assert len(names(tmp_path / "out")) == 150


def test_a_file_named_after_its_content_is_written_once(tmp_path):
    named = put_named(tmp_path, "curve", ".bin", b"content")
    assert named == put_named(tmp_path, "curve", ".bin", b"content")
    assert named.sha256 == hashlib.sha256(b"content").hexdigest()
    assert named.name == f"curve-{named.sha256[:16]}.bin"
    assert file_names(tmp_path) == [named.name]
    assert put_named(tmp_path, "curve", ".bin", b"other").name != named.name


def test_a_damaged_file_is_named_with_both_hashes(tmp_path):
    name, sha256 = put_named(tmp_path, "a", ".bin", b"content")
    assert read_verified(tmp_path / name, sha256) == b"content"
    (tmp_path / name).write_bytes(b"c0ntent")
    found = hashlib.sha256(b"c0ntent").hexdigest()
    with pytest.raises(StudyError, match=f"{name} is damaged: SHA-256 is {found}, but must be {sha256}"):
        read_verified(tmp_path / name, sha256)
    with pytest.raises(StudyError, match=r"b\.bin is missing"):
        read_verified(tmp_path / "b.bin", sha256)


def test_a_derived_file_is_replaced_whole(tmp_path):
    path = tmp_path / "table"
    replace_atomically(path, b"one")
    replace_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["table"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_the_user_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        put_if_absent(tmp_path / "a", b"")
        replace_atomically(tmp_path / "b", b"")
    finally:
        os.umask(before)
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_readers_do_not_see_drafts(tmp_path):
    (tmp_path / "1234.tmp").write_bytes(b"half")
    (tmp_path / "a.json").touch()
    assert file_names(tmp_path) == ["a.json"]
    assert file_names(tmp_path / "absent") == []


def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put_if_absent(tmp_path / "a", b"content")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "Operation not permitted")

    monkeypatch.setattr(store.os, "link", refuse)
    with pytest.raises(StudyError, match=r"has no hard links .*; use another disk"):
        put_if_absent(tmp_path / "a", b"content")


def test_a_sealed_record_notices_every_change(tmp_path):
    content = seal({"loss": 0.125, "names": ["a", "b"]})
    assert content == seal({"names": ["a", "b"], "loss": 0.125})
    assert unseal(tmp_path, content) == {"loss": 0.125, "names": ["a", "b"]}
    with pytest.raises(StudyError, match="was altered after it was written"):
        unseal(tmp_path, content.replace(b"0.125", b"0.135"))
    for torn in (b"", content[:-10], b"[]", b"{}", b"\xff\xfe"):
        with pytest.raises(
            StudyError, match="is torn or is no record of this study; restore it or remove it"
        ):
            unseal(tmp_path, torn)
    with pytest.raises(ValueError, match="may not have a key 'record_sha256'"):
        seal({"record_sha256": ""})
