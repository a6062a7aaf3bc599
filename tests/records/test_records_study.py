"""The folder of a study: committed once, readable after any kill."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmdistill.errors import ConfigError, ConflictError, InputError, StudyError
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import content_hash, tables

ROOT = Path(__file__).parents[2]
# Runs one small study again and again, the n-th time killed in front of its n-th change of the disk.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from conftest import run_small_study

def arm(nth):
    left = [nth]
    for name in ("fsync", "link", "unlink", "replace"):
        def counted(*args, name=name, call=getattr(os, name), **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name == "fsync" else call(*args, **options)
        setattr(os, name, counted)

nth, status = 0, None
while status != 0:
    nth += 1
    child = os.fork()
    if not child:
        arm(nth)
        run_small_study(Path(sys.argv[3]) / f"{nth:03}")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(nth)
"""


def test_a_study_can_be_begun_once_and_opened_again(folder, study_row):
    again = StudyFolder.create(
        folder.root, study_row(command="again"), "# other text", {"seed": 7, "name": "tiny"}
    )
    assert again.row == folder.row == StudyFolder.open(folder.root).row == study_row()
    assert again.resolved == {"name": "tiny", "seed": 7}
    assert (folder.root / "study.toml").read_text() == 'name = "tiny"\n'


def test_every_changed_setting_is_a_problem_of_its_own(tmp_path, study_row):
    first = {"search": {"trials": 12}, "eps": float("inf"), "gone": 1, "arms": ["a"]}
    StudyFolder.create(tmp_path, study_row(), "", first)
    StudyFolder.create(tmp_path, study_row(), "", {**first, "arms": ("a",)}).put_decision("a", {})
    with pytest.raises(ConfigError) as caught:
        StudyFolder.create(
            tmp_path, study_row(), "", {"search": {"trials": 13}, "eps": 1.0, "arms": ["a"], "new": 0}
        )
    shown = {problem.where.rpartition(": ")[2]: problem.rule for problem in caught.value.problems}
    assert shown == {
        "search.trials": "12 -> 13", "eps.$float": '"Infinity" -> (absent)', "eps": "(absent) -> 1.0",
        "gone": "1 -> (absent)", "new": "(absent) -> 0",
    }  # fmt: skip
    assert all(
        problem.mend == "run with another --output, or restore the value" for problem in caught.value.problems
    )


def test_a_folder_without_a_study_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match=r"no study here .*; give the folder that `mmdistill run` printed"):
        StudyFolder.open(tmp_path)


def test_an_altered_study_is_refused(folder):
    path = folder.root / "study.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(StudyError, match=r"study\.json was altered"):
        StudyFolder.open(folder.root)


def test_the_first_decision_wins(folder):
    assert folder.put_decision("mt_pkdot/0", {"lr": 0.1, "bad": float("nan")})["lr"] == 0.1
    assert folder.put_decision("mt_pkdot/0", {"lr": 0.2})["lr"] == 0.1
    other = StudyFolder.open(folder.root)
    assert other.put_decision("mt_pkdot/0", {"lr": 0.3})["lr"] == 0.1
    other.put_decision("ümlaut", {})
    assert (
        set(other.decisions()) == set(StudyFolder.open(folder.root).decisions()) == {"mt_pkdot/0", "ümlaut"}
    )
    assert folder.decisions()["mt_pkdot/0"]["bad"] != folder.decisions()["mt_pkdot/0"]["bad"]


def test_a_selection_is_frozen_once_per_value(folder):
    assert folder.selection() is None
    assert folder.put_selection({"a": (1, 2)}) == ("1.json", {"a": [1, 2]})
    assert folder.put_selection({"a": [1, 2]}) == ("1.json", {"a": [1, 2]})
    assert folder.put_selection({"a": [3]}) == ("2.json", {"a": [3]})
    assert StudyFolder.open(folder.root).selection() == {"a": [3]}


def test_the_first_record_of_an_opening_stays(folder, opening_row):
    folder.put_opening([opening_row(), opening_row(trial_id="t1", seed_index=1)])
    later = opening_row().opened_at.replace(year=2027)
    folder.put_opening([opening_row(opened_at=later), opening_row(trial_id="t1", opened_at=later)])
    rows = folder.openings()
    assert [row.trial_id for row in rows] == ["t0", "t1"]
    assert rows[0] == opening_row()
    with pytest.raises(ConflictError, match=r"o0\.json records the trials \['t0', 't1'\]"):
        folder.put_opening([opening_row(trial_id="t9")])


def test_attempts_are_numbered_and_a_killed_one_has_no_end(folder):
    assert folder.begin_attempt("o/0") == 1
    assert StudyFolder.open(folder.root).begin_attempt("o/0") == 2
    assert folder.end_attempt("o/0", 2, "failed", "out of memory")
    assert not folder.end_attempt("o/0", 2, "complete")
    first, second = folder.attempts()
    assert (first.attempt, first.ended_at, first.outcome, first.pid) == (1, None, None, os.getpid())
    assert (second.attempt, second.outcome, second.error) == (2, "failed", "out of memory")
    assert second.ended_at >= second.started_at


def test_a_final_comes_back_as_it_was(folder, final):
    written = final()
    assert folder.put_final(written)
    for study in (folder, StudyFolder.open(folder.root)):
        whole = study.final("o0", whole=True)
        assert list(whole.trials) == written.trials
        assert list(whole.stages) == written.stages
        assert whole.epochs == written.epochs
        assert whole.predictions == written.predictions
        assert not study.final("o0").epochs
        assert study.final("o0") is study.final("o0")
        assert study.final_ids() == {"o0"}
    assert [side.rows for side in whole.sides] == [6, 8]


def test_the_first_final_of_an_order_wins(folder, final, trial_row):
    assert folder.put_final(final())
    slower = replace(final(), trials=[trial_row(cpu_s=9.0)], epochs=[])
    assert not folder.put_final(slower)
    assert not StudyFolder.open(folder.root).put_final(slower)
    assert list(folder.final("o0").trials) == final().trials


def test_a_final_without_curves_has_no_side_files(folder, final):
    folder.put_final(final(lanes=0))
    assert folder.final("o0", whole=True).predictions == []
    assert not (folder.root / "curves").exists()


def test_finals_come_in_the_order_of_their_names(folder, final):
    for order_id in ("b", "a", "c/d"):
        folder.put_final(final(order_id))
    assert [each.order_id for each in folder.finals()] == ["a", "b", "c/d"]
    with pytest.raises(StudyError, match="has no result of order 'x'"):
        folder.final("x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.json", b'{"order_id": "to', r"torn\.json is torn or is no record"),
        ("notes.txt", b"", r"notes\.txt is no record of this study; remove it"),
    ],
)
def test_a_foreign_file_among_the_finals_is_named(folder, final, name, content, message):
    folder.put_final(final())
    (folder.root / "finals" / "0.tmp").touch()
    assert len(list(folder.finals())) == 1
    (folder.root / "finals" / name).write_bytes(content)
    with pytest.raises(StudyError, match=message):
        list(StudyFolder.open(folder.root).finals())


def test_a_final_under_a_wrong_name_or_of_another_kind_is_named(folder, final):
    folder.put_final(final())
    finals = folder.root / "finals"
    (finals / "o1.json").write_bytes((finals / "o0.json").read_bytes())
    with pytest.raises(StudyError, match=r"o1\.json is no final of order 'o1'"):
        list(folder.finals())
    folder.put_decision("x", {"kind": "search"})
    (finals / "o1.json").write_bytes((folder.root / "decisions" / "x.json").read_bytes())
    with pytest.raises(StudyError, match=r"o1\.json is no final of order 'o1': 'schema_version'"):
        list(StudyFolder.open(folder.root).finals())


def test_a_damaged_side_file_is_named(folder, final):
    folder.put_final(final())
    (path,) = (folder.root / "predictions").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StudyError, match=f"{path.name} is damaged"):
        folder.final("o0", whole=True)


def test_big_orders_are_committed_quickly(folder, final):
    big = [
        final("test", "test", lanes=10, epochs=0, rows=540),
        final("confirm", "confirm", lanes=10, epochs=600),
    ]
    spent = time.process_time()
    for each in big:
        folder.put_final(each)
    assert time.process_time() - spent < 0.6


def test_a_study_killed_at_any_point_is_readable_and_ends_the_same(tmp_path, small_study, monkeypatch):
    script = [sys.executable, "-c", KILLED, str(ROOT / "platform"), str(Path(__file__).parent), str(tmp_path)]
    points = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert points > 30
    monkeypatch.setattr(
        os, "fsync", lambda _: None
    )  # The machine stays up; a hundred studies wait for a disk.
    hashes = set()
    for nth in range(1, points + 1):
        root = tmp_path / f"{nth:03}"
        if (root / "study.json").exists():
            assert tables(StudyFolder.open(root))["trials"].num_rows in (0, 2)
        small_study(root)
        study = StudyFolder.open(root)
        hashes.add(content_hash(tables(study)))
        assert len(study.attempts()) in (1, 2)
        assert json.loads((root / "study.json").read_text())["resolved"] == {"seed": 7}
    assert len(hashes) == 1
