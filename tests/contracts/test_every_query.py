"""Every named query runs on a finished study and answers its question."""

from pathlib import Path

import pytest

from mmdistill.reports.query import query
from mmdistill.studies.study import open_study

ROOT = Path(__file__).parents[2]
QUERIES = sorted((ROOT / "dashboards" / "queries").glob("*.sql"))
STUDY = ROOT / "search_spaces" / "quickstart.toml"
SMALL = [
    "run.epochs=2",
    "run.teachers={epochs = 2, out_of_fold = 2}",
    "search={trials = 2, startup = 2, top = 1, seeds = 1}",
    "confirm.pairs=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, begin, finish):
    root = tmp_path_factory.mktemp("queries") / "quickstart"
    finish(begin(open_study(STUDY, SMALL), root, STUDY.read_text()))
    return root


def test_there_are_queries():
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_the_query_runs_and_says_what_it_asks(path, finished):
    sql = path.read_text()
    assert sql.startswith("-- ")
    found = query(finished, sql)
    if path.stem in {"trained_twice", "attempts", "redone_work"}:
        assert found.num_rows == 0
    else:
        assert found.num_rows > 0


def test_every_arm_of_the_default_study_gets_the_same_budget(finished):
    rows = query(finished, (ROOT / "dashboards/queries/equal_budget.sql").read_text()).to_pylist()
    assert len(rows) == 11
    assert {row["trials"] for row in rows} == {2}
