"""What may be added to a study that has begun, and what may not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdistill.errors import ConfigError, LockedError, StudyError
from mmdistill.records.revisions import normal, refusals
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, latest, tables
from mmdistill.settings import flattened

HELPS = {"question": "Does it help?", "arm": "hinton", "against": "student_only"}
HARMS = {"question": "Does it harm?", "arm": "student_only", "against": "hinton"}
NEW = {"question": "And this?", "arm": "pkdot", "against": "student_only"}
FIRST = {
    "name": "tiny",
    "search": {"trials": 4, "startup": 2},
    "confirm": {"pairs": 2},
    "contrasts": [HELPS],
    "arms": {"student_only": {"run": {"epochs": 2}}, "hinton": {"run": {"epochs": 2}}},
    "order": ["student_only", "hinton"],
    "fingerprints": {"planned~0": "abc"},
    "stage_versions": {"student": 1},
}
MORE = FIRST["arms"] | {"pkdot": {"run": {"epochs": 3}}}
ALLOWED = {
    "an arm": {"arms": MORE, "order": ["student_only", "pkdot", "hinton"]},
    "an arm and its contrast": {
        "arms": MORE,
        "order": ["student_only", "hinton", "pkdot"],
        "contrasts": [NEW, HELPS],
    },
    "pairs": {"confirm": {"pairs": 5}},
    "data of other folds": {"fingerprints": {"planned~0": "abc", "planned~1": "def"}},
}
REFUSED = {
    "an arm changed": (
        {"arms": {**FIRST["arms"], "hinton": {"run": {"epochs": 9}}}},
        "arms.hinton.run.epochs: 2 -> 9; run with another --output, or restore the value",
    ),
    "an arm removed": (
        {"arms": {"student_only": FIRST["arms"]["student_only"]}},
        "arms.hinton.run.epochs: 2 -> (absent); run with another --output, or restore the value",
    ),
    "arms in another order": (
        {"order": ["hinton", "student_only"]},
        'order: ["student_only", "hinton"] -> ["hinton", "student_only"]; '
        "run with another --output, or restore the value",
    ),
    "fewer pairs": (
        {"confirm": {"pairs": 1}},
        "confirm.pairs: 2 -> 1; run with another --output, or restore the value",
    ),
    "more trials": (
        {"search": {"trials": 5, "startup": 2}},
        "search.trials: 4 -> 5; run with another --output, or restore the value",
    ),
    "a contrast removed": (
        {"contrasts": []},
        'contrasts.hinton against student_only: ["Does it help?"] -> (absent); run with another --output, '
        "or restore it: one can be added while an arm of it was not read on test rows",
    ),
    "other code": (
        {"stage_versions": {"student": 2}},
        "stage_versions.student: 1 -> 2; "
        "run with another --output, or use the version of mmdistill that began the study",
    ),
    "other data": (
        {"fingerprints": {"planned~0": "xyz"}},
        'fingerprints.planned~0: "abc" -> "xyz"; run with another --output, or restore the data',
    ),
}


@pytest.fixture
def begun(tmp_path, study_row):
    """Return a function that begins the study, or goes on with it, with some changes."""

    def create(changes=(), *, arms=("student_only", "hinton"), **more):
        row = study_row(
            arms_json=json.dumps([{"name": name} for name in arms]),
            contrasts_json=json.dumps((FIRST | dict(changes))["contrasts"]),
            **more,
        )
        return StudyFolder.create(tmp_path, row, f"# {len(arms)} arms\n", FIRST | dict(changes))

    create().put_decision("hinton~0", {})
    return create


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED)
def test_what_may_be_added_makes_a_revision_once(begun, changes):
    folder = begun(changes)
    assert folder.revision == folder.row.revision == 2
    assert folder.resolved == FIRST | changes
    assert begun(changes).revision == StudyFolder.open(folder.root).revision == 2
    assert (folder.root / "study.json").exists()
    assert [path.name for path in (folder.root / "revisions").iterdir()] == ["2.json"]


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_key_by_key(begun, changes, message):
    with pytest.raises(ConfigError) as caught:
        begun(changes)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{begun().root / 'study.json'}: {message}"
    ]
    assert begun().revision == 1


def test_a_refusal_names_the_newest_revision(begun):
    begun(ALLOWED["pairs"])
    with pytest.raises(ConfigError, match=r"revisions.2\.json: confirm\.pairs: 5 -> 2"):
        begun()


def test_every_problem_is_told_and_what_is_allowed_is_none(begun):
    changes = {"confirm": {"pairs": 9}, "search": {"trials": 4, "startup": 3}, "name": "other"}
    with pytest.raises(ConfigError) as caught:
        begun(changes)
    assert [problem.where.rpartition(": ")[2] for problem in caught.value.problems] == [
        "name",
        "search.startup",
    ]


def test_trials_may_change_while_nothing_is_proposed(tmp_path, study_row):
    StudyFolder.create(tmp_path, study_row(), "", FIRST)
    more = FIRST | {"search": {"trials": 9, "startup": 2}}
    assert StudyFolder.create(tmp_path, study_row(), "", more).revision == 2


def test_a_contrast_of_arms_that_were_read_on_test_rows_is_too_late(begun, opening_row):
    folder = begun()
    folder.put_opening([opening_row(arm="hinton")])
    assert begun({"contrasts": [HELPS, HARMS]}).revision == 2
    folder.put_opening([opening_row(arm="student_only", order_id="o1", trial_id="t1")])
    with pytest.raises(ConfigError, match=r"contrasts\.hinton against student_only") as caught:
        begun({"contrasts": [HELPS, HARMS, HELPS | {"question": "Really?"}]})
    assert len(caught.value.problems) == 1
    added = {"arms": MORE, "order": [*FIRST["order"], "pkdot"], "contrasts": [HARMS, NEW, HELPS]}
    assert begun(added).revision == 3


def test_arms_and_contrasts_say_with_which_revision_they_came(begun):
    begun()
    changes = ALLOWED["an arm and its contrast"]
    folder = begun(changes, arms=("student_only", "hinton", "pkdot"))
    arms = {arm["name"]: arm["revision"] for arm in json.loads(folder.row.arms_json)}
    assert arms == {"student_only": 1, "hinton": 1, "pkdot": 2}
    assert [c["revision"] for c in json.loads(folder.row.contrasts_json)] == [2, 1]
    assert (folder.root / "study.toml").read_text() == "# 3 arms\n"


def test_the_table_of_studies_has_a_row_per_revision_the_newest_last(begun):
    compact(begun())
    folder = begun(ALLOWED["pairs"], pairs=5)
    for found in (tables(folder), latest(StudyFolder.open(folder.root))):
        assert found["studies"]["revision"].to_pylist() == [1, 2]
        assert found["studies"]["pairs"].to_pylist() == [2, 5]


def test_a_missing_or_altered_revision_is_named(begun):
    begun(ALLOWED["pairs"])
    folder = begun(ALLOWED["pairs"] | ALLOWED["an arm"])
    path = folder.root / "revisions" / "2.json"
    text = path.read_text()
    path.write_text(text.replace('"pairs": 5', '"pairs": 6'))
    with pytest.raises(StudyError, match=r"2\.json was altered"):
        StudyFolder.open(folder.root)
    path.unlink()
    with pytest.raises(StudyError, match=r"2\.json is missing; restore it from a backup"):
        StudyFolder.open(folder.root)


def test_selections_are_numbered_and_all_stay(folder):
    assert folder.selections() == []
    folder.put_selection({"winners": [1]})
    assert folder.put_selection({"winners": [1, 2]}) == ("2.json", {"winners": [1, 2]})
    assert StudyFolder.open(folder.root).selections() == [{"winners": [1]}, {"winners": [1, 2]}]


def test_a_driver_that_was_overtaken_commits_nothing(folder, final, opening_row, study_row):
    def overtaken():
        raise LockedError("taken over")

    late = StudyFolder.open(folder.root, overtaken)
    before = sorted(path for path in folder.root.rglob("*"))
    for commit in (
        lambda: late.put_decision("a", {}),
        lambda: late.put_selection({"a": 1}),
        lambda: late.put_opening([opening_row()]),
        lambda: late.put_final(final()),
        lambda: compact(late),
        lambda: StudyFolder.create(folder.root, study_row(), "", {}, overtaken),
    ):
        with pytest.raises(LockedError, match="taken over"):
            commit()
    assert sorted(path for path in folder.root.rglob("*")) == before


leaves = st.integers(0, 3) | st.sampled_from(["a", "b"]) | st.lists(st.integers(0, 2), max_size=2)
trees = st.recursive(
    leaves, lambda children: st.dictionaries(st.sampled_from("xyz"), children, min_size=1), max_leaves=8
)
studies = st.dictionaries(st.sampled_from(["name", "seed", "search", "confirm", "margin"]), trees)


@given(old=studies, new=studies)
def test_whatever_is_no_extension_is_refused_at_exactly_the_keys_that_differ(old, new):
    found = refusals("s", normal(old), normal(new), begun=True, opened=())
    before, after = flattened(old), flattened(new)
    differing = {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}
    assert {problem.where.removeprefix("s: ") for problem in found} == differing
