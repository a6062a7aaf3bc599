"""Every hash computed again, and tables derived again."""

import json
import shutil
from dataclasses import replace

import pytest

from mmdistill.errors import InputError, StudyError
from mmdistill.records.audit import audit
from mmdistill.records.lease import Lease
from mmdistill.records.sealed import seal
from mmdistill.records.store import put_named
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, content_hash, latest, rebuild, tables


@pytest.fixture
def full(folder, final, opening_row):
    folder.put_decision("hinton~0", {})
    folder.put_selection({"winners": []})
    folder.put_opening([opening_row()])
    for order_id in ("o1", "o0"):
        attempt = folder.begin_attempt(order_id)
        folder.put_final(final(order_id))
        folder.end_attempt(order_id, attempt, "complete")
    with Lease(folder.root):
        compact(folder)
    tensors = put_named(folder.root / "cache", "teacher", ".safetensors", b"tensors")
    entry = {"key": "k0", "tensors": tensors.name, "sha256": tensors.sha256}
    (folder.root / "cache" / "k0.json").write_bytes(seal(entry))
    return folder


def audited(study):
    return audit(study.root, study.root / "cache")


def test_a_sound_study_has_no_problems(full):
    found = audited(full)
    assert found.problems == ()
    assert found.leftovers == {}
    assert found.checked == {
        "study": 1, "lease": 2, "decisions": 1, "selection": 1, "openings": 1, "attempts": 4, "finals": 2,
        "curves": 2, "predictions": 2, "manifest": 1, "compact": 16, "cache": 1,
    }  # fmt: skip


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("place", "mend"),
    [
        ("decisions/*.json", "restore it from a backup"),
        ("selection/*.json", "restore it from a backup"),
        ("openings/*.json", "restore it from a backup"),
        ("attempts/*.begin.json", "restore it from a backup"),
        ("finals/o0.json", "restore it from a backup"),
        ("curves/o0*", "restore it from a backup"),
        ("predictions/o0*", "restore it from a backup"),
        ("lease/1.json", "restore it from a backup"),
        ("manifest/1.json", "write the tables again with `mmdistill rebuild`"),
        ("compact/files/trials*", "write the tables again with `mmdistill rebuild`"),
        ("cache/k0.json", "remove it; `mmdistill run` computes it again where it is needed"),
        ("cache/teacher*", "remove it; `mmdistill run` computes it again where it is needed"),
    ],
)
def test_one_flipped_bit_anywhere_is_found_and_named(full, place, mend):
    path = min(full.root.glob(place))
    damaged(path)
    problems = audited(full).problems
    assert any(path.name in f"{problem.where} {problem.rule}" for problem in problems), problems
    assert mend in {problem.mend for problem in problems}


def test_a_missing_side_file_is_named(full):
    path = next((full.root / "curves").glob("o1*"))
    path.unlink()
    (problem,) = audited(full).problems
    assert str(problem) == f"{path}: is missing; restore it from a backup"


def test_a_trial_in_two_results_is_named(full, final):
    full.put_final(replace(final("o2"), trials=final("o0").trials))
    rules = [problem.rule for problem in audited(full).problems]
    assert rules == [f"trial o0.{n} is in several results: o0, o2" for n in range(2)]


def test_a_test_reading_that_the_ledger_does_not_know_is_named(full, final, trial_row):
    full.put_final(replace(final("o2", "test"), trials=[trial_row(trial_id="t7", phase="test")]))
    (problem,) = audited(full).problems
    assert problem.rule == "the ledger of test openings has no entry for t7 of o2"


def test_what_killed_writers_left_is_counted_and_no_problem(full):
    (full.root / "finals" / "1.tmp").touch()
    put_named(full.root / "curves", "o9", ".parquet", b"")
    put_named(full.root / "cache", "teacher", ".safetensors", b"other")
    found = audited(full)
    assert found.problems == ()
    assert found.leftovers == {"finals": 1, "curves": 1, "cache": 1}


def test_the_folder_of_snapshots_is_no_leftover_but_snapshots_of_a_killed_training_are(full):
    training = full.root / "cache" / "checkpoints" / "0123456789abcdef"
    training.mkdir(parents=True)
    assert audited(full).leftovers == {}
    (training / "000004.json").touch()
    found = audited(full)
    assert found.problems == ()
    assert found.leftovers == {"checkpoints": 1}


def test_a_folder_without_a_study_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        audit(tmp_path, tmp_path / "cache")


def test_a_withdrawn_failure_is_not_the_result_that_counts(folder, final, trial_row):
    failed = replace(final("o0"), trials=[trial_row(status="failed")], stages=[], epochs=[], predictions=[])
    folder.put_final(failed)
    compact(folder)
    folder.withdraw("o0")
    assert not folder.has_final("o0")
    assert folder.final_ids() == set()
    assert latest(StudyFolder.open(folder.root))["trials"].num_rows == 0
    folder.put_final(final("o0"))
    for study in (folder, StudyFolder.open(folder.root)):
        assert {trial.status for trial in study.final("o0").trials} == {"complete"}
        assert study.final_ids() == {"o0"}
        assert tables(study)["trials"].num_rows == 2
    assert audited(folder).problems == ()
    assert (folder.root / "finals" / "o0~1.json").exists()


def test_only_failures_can_be_withdrawn(folder, final):
    folder.put_final(final("o0"))
    with pytest.raises(StudyError, match="order 'o0' did not fail, so its result stays"):
        folder.withdraw("o0")
    with pytest.raises(StudyError, match="has no result of order 'o1'"):
        folder.withdraw("o1")


def test_tables_are_derived_again_with_the_same_content(full):
    before = content_hash(latest(full))
    found = rebuild(StudyFolder.open(full.root))
    assert (found.before, found.after, found.is_outdated) == (before, before, False)
    assert found.manifest.number == 2


@pytest.mark.parametrize("damage", ["torn", "gone"])
@pytest.mark.parametrize("place", ["compact", "manifest"])
def test_damaged_tables_do_not_hinder_a_rebuild(full, place, damage):
    sound = content_hash(tables(full))
    for path in (full.root / place).rglob("*.*"):
        path.write_bytes(b"PAR1")
    if damage == "gone":
        shutil.rmtree(full.root / place)
    found = rebuild(StudyFolder.open(full.root))
    assert (found.before, found.after) == (None, sound)
    assert [problem for problem in audited(full).problems if "manifest/1" not in problem.where] == []


def test_records_that_came_since_are_told_apart_from_damage(full, final):
    full.put_final(final("o2"))
    found = rebuild(StudyFolder.open(full.root))
    assert found.is_outdated
    assert found.before != found.after == content_hash(tables(full))


def test_truth_is_never_touched(full):
    def truth():
        kept = ("compact", "manifest")
        paths = [
            p for p in full.root.rglob("*") if p.is_file() and p.relative_to(full.root).parts[0] not in kept
        ]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = truth()
    rebuild(StudyFolder.open(full.root))
    audited(full)
    assert truth() == before


def test_a_reader_that_has_read_the_manifest_finds_its_files_while_tables_are_written_anew(full, final):
    listed = json.loads((full.root / "manifest" / "1.json").read_text())["files"]
    snapshots = full.root / "compact" / "files"
    sizes = {file["file"]: (snapshots / file["file"]).stat().st_size for file in listed}
    full.put_final(final("o2"))
    assert compact(full).number == 2
    assert sizes == {file["file"]: (snapshots / file["file"]).stat().st_size for file in listed}
    full.put_final(final("o3"))
    compact(full)
    assert not all((snapshots / file["file"]).exists() for file in listed)
    trials = full.root / "compact" / "trials.parquet"
    assert any(trials.samefile(path) for path in snapshots.glob("trials-*"))
