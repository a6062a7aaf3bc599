"""Studies from several machines side by side: all of them whole, or nothing."""

import shutil

import pytest

from mmdistill.errors import InputError
from mmdistill.records.audit import audit
from mmdistill.records.merging import merge
from mmdistill.records.sealed import unseal
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, content_hash, latest


@pytest.fixture
def make(tmp_path, study_row, final):
    """Return ``make(place, host, **columns)``: a finished study called after the last part of its place."""

    def _make(place, host="here", seed=7, **columns):
        row = study_row(host=host, seed=seed, **columns)
        folder = StudyFolder.create(tmp_path / place, row, "", {"seed": seed})
        folder.put_final(final())
        compact(folder)
        (folder.root / "cache").mkdir()
        (folder.root / "cache" / "big.safetensors").write_bytes(b"x")
        return folder.root

    return _make


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_studies_are_copied_whole_and_their_origins_recorded(make, tmp_path):
    one, two = make("a/one", "alpha"), make("b/two", "beta", seed=8, git_commit="c0ffee")
    output = tmp_path / "new" / "all"
    origins = merge(output, [one, two], "mmdistill merge all a/one --token abc123")
    assert names(output) == ["one", "origins.json", "two"]
    assert [(o.study, o.host, o.is_copied) for o in origins] == [
        ("one", "alpha", True),
        ("two", "beta", True),
    ]
    assert origins[1].git_commit == "c0ffee"
    assert origins[0].source == str(one)
    assert origins[0].content_hash == content_hash(latest(StudyFolder.open(output / "one")))
    record = unseal(output / "origins.json", (output / "origins.json").read_bytes())
    assert record["studies"] == [origin._asdict() for origin in origins]
    assert record["command"] == "mmdistill merge all a/one --token ***"
    assert record["merged_at"]
    for name, root in (("one", one), ("two", two)):
        assert not audit(output / name, output / name / "cache").problems
        assert not (output / name / "cache").exists()
        assert (output / name / "study.json").read_bytes() == (root / "study.json").read_bytes()
    assert names(tmp_path / "new") == ["all"]


def test_one_name_on_two_machines_is_kept_apart(make, tmp_path):
    studies = [make("a/quick", "alpha"), make("b/quick", "beta", seed=8)]
    merge(tmp_path / "all", studies, "")
    assert names(tmp_path / "all") == ["origins.json", "quick@alpha", "quick@beta"]


def test_what_is_equal_is_there_once_and_noted(make, tmp_path):
    one = make("a/quick", "alpha")
    two = make("b/quick", "beta")
    origins = merge(tmp_path / "all", [one, two], "")
    assert names(tmp_path / "all") == ["origins.json", "quick"]
    assert [(o.study, o.host, o.is_copied) for o in origins] == [
        ("quick", "alpha", True),
        ("quick", "beta", False),
    ]


def test_all_problems_are_told_at_once_and_nothing_is_written(make, tmp_path):
    torn, same, other = make("a/torn"), make("b/quick"), make("c/quick", seed=8)
    (next((torn / "curves").iterdir())).write_bytes(b"PAR1")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mine.txt").write_text("mine")
    before = names(tmp_path)
    with pytest.raises(InputError) as caught:
        merge(tmp_path / "all", [torn, same, other, tmp_path / "no"], "")
    shown = [str(problem) for problem in caught.value.problems]
    assert len(shown) == 4
    assert shown[0].endswith("all: there is something here already; give a new folder")
    assert "is damaged" in shown[1]
    assert shown[2].startswith(f"{tmp_path / 'no'}: no study here")
    assert "2 different studies of one machine would be called 'quick@here'" in shown[3]
    assert shown[3].endswith("rename the folder of all but one")
    assert names(tmp_path) == before
    assert names(tmp_path / "all") == ["mine.txt"]
    with pytest.raises(InputError, match="no study is named; name at least one"):
        merge(tmp_path / "new", [], "")


def test_a_study_that_changes_meanwhile_is_not_merged(make, tmp_path, monkeypatch):
    copytree = shutil.copytree

    def tear(source, target, *below, **options):
        copytree(source, target, *below, **options)
        if below:
            return
        next((target / "finals").iterdir()).write_text("{")

    monkeypatch.setattr(shutil, "copytree", tear)
    with pytest.raises(InputError, match="a study changed while it was copied; merge again once its driver"):
        merge(tmp_path / "all", [make("a/quick")], "")
    assert names(tmp_path) == ["a"]
