"""Every named query runs on the golden study, on a folder of studies, and on one that is running."""

import shutil
from pathlib import Path

import pytest

from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, latest
from mmdistill.reports.named import named_queries, resolved
from mmdistill.reports.query import query, query_sources
from mmdistill.reports.sources import Source, sources
from mmdistill.studies.study import open_study

GOLDEN = Path(__file__).parents[1] / "golden"
QUERIES = sorted(named_queries())
NOTHING_TO_TELL = {"trained_twice"}


@pytest.fixture(scope="module")
def golden():
    """Return the golden study as a source, read once."""
    return sources(GOLDEN / "store")


@pytest.fixture(scope="module")
def twice(golden):
    """Return the golden study as two studies of one folder."""
    (one,) = golden
    return [Source("a", one.tables), Source("b", one.tables)]


def test_there_are_queries():
    assert len(QUERIES) >= 18
    assert {"best_per_arm", "pair_differences", "optimism_gap", "seeds", "cache_hits", "failures"} <= set(
        QUERIES
    )


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_says_what_it_asks(name):
    assert resolved(f"@{name}").startswith("-- ")
    assert "?" in named_queries()[name].split(" No row")[0]


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_answers_for_each_study_by_itself(name, golden, twice):
    alone, both = (query_sources(found, resolved(f"@{name}")).to_pylist() for found in (golden, twice))
    assert bool(alone) == (name not in NOTHING_TO_TELL)
    for study in ("a", "b"):
        assert [{**row, "study": "store"} for row in both if row["study"] == study] == alone
    assert len(both) == 2 * len(alone)


def test_every_query_runs_on_a_study_that_has_just_begun(begin, tmp_path):
    study = open_study(GOLDEN / "store.toml")
    session = begin(study, tmp_path / "running", "")
    session.folder.begin_attempt(session.ready([], 1)[0].order_id)
    found = sources(tmp_path)
    rows = {name: query_sources(found, resolved(f"@{name}")).num_rows for name in QUERIES}
    assert {name for name, number in rows.items() if number} == {"provenance", "redone_work"}


def test_every_arm_of_the_golden_study_gets_the_same_budget(golden):
    rows = query_sources(golden, resolved("@equal_budget")).to_pylist()
    assert len(rows) == 6
    assert {row["trials"] for row in rows} == {2}


def test_the_golden_study_is_whole_and_has_every_kind_of_row(tmp_path):
    root = tmp_path / "store"
    shutil.copytree(GOLDEN / "store", root)
    compact(StudyFolder.open(root))
    assert all(table.num_rows for table in latest(StudyFolder.open(root)).values())
    size = sum(path.stat().st_size for path in (GOLDEN / "store").rglob("*") if path.is_file())
    assert size < 500_000
    shown = query(root, "SELECT DISTINCT status FROM trials ORDER BY status")["status"].to_pylist()
    assert shown == ["complete", "pruned"]
