"""Three forms, one set of numbers."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from mmdistill.cli.printing import plain
from mmdistill.records.finals import Final
from mmdistill.records.study import StudyFolder
from mmdistill.reports.ablation import summarise, summarise_tables
from mmdistill.reports.query import query
from mmdistill.reports.render import as_csv, markdown
from mmdistill.reports.status import status, status_of_tables

GOLDEN = Path(__file__).with_name("quick_table.md")


@pytest.fixture
def golden(new_study):
    contrasts = [("Better?", "hinton", "student_only")]
    made = new_study(["student_only", "hinton"], contrasts=contrasts, pairs=8)
    made.add_search("student_only", [0.9, 0.8, 0.7, 0.75])
    made.add_search("hinton", [0.9, 0.8, 0.7, 0.6])
    for seed in range(8):
        made.add_test("student_only", seed, np.arange(100) % 2 == 0)
        made.add_test("hinton", seed, (np.arange(100) + seed) % 100 >= (8, 15)[seed % 2])
    return made


def test_the_table_is_the_golden_one(golden):
    assert markdown(summarise_tables(golden.tables())) == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("seeds", "test"),
    [
        ({"hinton": 16, "pkdot": 16}, "exact sign-flip test over pairs"),
        ({"hinton": 17, "not begun": 0}, "Student's t test over pairs"),
        (
            {"hinton": 17, "pkdot": 16},
            "sign-flip test (exact up to n = 16, Student's t beyond) over pairs",
        ),
    ],
)
def test_the_footnote_names_the_test_behind_the_p(new_study, seeds, test):
    made = new_study(["student_only", *seeds], reference=None)
    for arm, n in {"student_only": 17, **seeds}.items():
        made.fill({arm: 0.6}, seeds=n, rows=4)
    text = " ".join(markdown(summarise_tables(made.tables())).split())
    assert f"95 % intervals: t interval over seeds and {test}. " in text


def rows_of(text, first):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    header = [cell.strip() for cell in lines[start].strip("|").split("|")]
    body = []
    for line in lines[start + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(header):
            break
        body.append(dict(zip(header, cells, strict=True)))
    return body


def test_the_three_forms_agree(made):
    ablation = summarise_tables(made.tables())
    shown = rows_of(markdown(ablation), "arm ")
    lines = list(csv.DictReader(io.StringIO(as_csv(ablation))))
    loaded = plain(ablation)["arms"]
    assert len(shown) == len(lines) == len(loaded) == 3
    for cells, line, arm in zip(shown, lines, loaded, strict=True):
        assert cells["arm"] == line["arm"] == arm["name"]
        assert float(line["accuracy"]) == arm["score"]["mean"]
        assert cells["accuracy"].startswith(f"{arm['score']['mean']:.3f} ± ")
        claim = arm["against_baseline"]
        if claim:
            assert float(line["minus_baseline_crossed_low"]) == claim["crossed"]["low"]
            assert f"{claim['crossed']['low']:.3f}" in cells["minus student_only [seeds] [x rows]"]
            assert cells["verdict"].rstrip(" *") == line["verdict"] == claim["verdict"]


def test_exploratory_verdicts_are_marked(made):
    shown = {row["arm"]: row["verdict"] for row in rows_of(markdown(summarise_tables(made.tables())), "arm ")}
    assert shown == {"student_only": "baseline", "self_distillation": "helps", "hinton": "helps *"}


def test_the_table_fits_two_hundred_columns(golden):
    name = "mt_pkdot_with_teachers_fourier_and_gradients_without_alignment"
    for found in (golden.trials, golden.predictions):
        found += [
            dataclasses.replace(r, arm=name, trial_id=r.trial_id + "x")
            for r in found
            if r.arm == "student_only"
        ]
    golden.trials = [dataclasses.replace(run, cpu_s=123456.0, note="a note " * 40) for run in golden.trials]
    golden.trials = [
        dataclasses.replace(run, metrics=run.metrics | {"accuracy": 0.1}) if run.arm == name else run
        for run in golden.trials
    ]
    text = markdown(summarise_tables(golden.tables()))
    assert max(map(len, text.splitlines())) <= 200
    assert "mt_pkdot_with_…thout_alignment" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in tables}) == 2, "each of the two tables is aligned"


def test_long_names_that_would_look_the_same_are_shown_whole(new_study):
    names = [f"transport@eps={eps}+anchors=global_and_least" for eps in ("0.03", "0.3")]
    text = markdown(summarise_tables(new_study(["student_only", *names]).tables()))
    assert all(f"| {name} " in text for name in names)


def test_text_cannot_be_a_formula_in_a_spreadsheet(new_study):
    made = new_study(["student_only", "=HYPERLINK(1)", "+a", "a|b"])
    ablation = summarise_tables(made.tables())
    names = [line["arm"] for line in csv.DictReader(io.StringIO(as_csv(ablation)))]
    assert names == ["student_only", "'=HYPERLINK(1)", "'+a", "a|b"]
    assert "a\\|b" in markdown(ablation)


def test_json_has_null_where_there_is_no_number(new_study):
    made = new_study(["student_only", "hinton"], contrasts=[("Better?", "hinton", "student_only")])
    made.add_test("student_only", 0, [True, False])
    loaded = plain(summarise_tables(made.tables()))
    assert loaded["arms"][0]["score"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert loaded["contrasts"][0]["seeds"]["mean"] is None


def test_a_study_without_a_reference_has_no_such_column(made):
    made.study = dataclasses.replace(made.study, reference=None)
    assert "minus None" not in markdown(summarise_tables(made.tables()))
    assert rows_of(markdown(summarise_tables(made.tables())), "arm ")[2]["verdict"] == "helps *"


def test_a_closed_test_split_is_in_the_title(made):
    made.trials = [run for run in made.trials if run.phase != "test"]
    made.predictions, made.openings = [], []
    text = markdown(summarise_tables(made.tables()))
    assert "(validation, test not opened yet)" in text.splitlines()[0]
    assert "The test split was opened 0 time(s)." in text


def test_everything_is_read_from_the_folder(golden, tmp_path):
    folder = StudyFolder.create(
        tmp_path, golden.study, "", {"search": {"trials": 4}, "confirm": {"pairs": 8}}
    )
    for order_id in {row.order_id for row in golden.openings}:
        folder.put_opening([row for row in golden.openings if row.order_id == order_id])
    attempt = folder.begin_attempt("all")
    folder.put_final(Final("all", "test", trials=golden.trials, predictions=golden.predictions))
    folder.end_attempt("all", attempt, "complete")
    folder.begin_attempt("killed")
    assert summarise(tmp_path).arms == summarise_tables(golden.tables()).arms
    assert query(tmp_path, "SELECT count(*) AS n FROM trials")["n"].to_pylist() == [40]
    found = status(tmp_path)
    assert found.done == 1.0
    assert [attempt.order_id for attempt in found.open_attempts] == ["killed"]


def test_status_counts_by_phase_and_outcome(golden):
    golden.trials = [run for run in golden.trials if run.arm != "hinton" or run.phase == "search"]
    last = next(run for run in golden.trials if (run.arm, run.number) == ("hinton", 3))
    golden.trials[golden.trials.index(last)] = dataclasses.replace(last, status="diverged")
    golden.add_attempt("search-0-0", 5)
    golden.add_attempt("search-1-0", None)
    golden.add_attempt("search-2-0", None)
    found = status_of_tables(golden.tables(), {"search-0-0", "search-2-0"})
    student, hinton = found.arms
    assert student.counts == {"search": {"complete": 4}, "confirm": {"complete": 8}, "test": {"complete": 8}}
    assert hinton.counts == {"search": {"complete": 3, "diverged": 1}}
    assert (student.done, hinton.done) == (1.0, pytest.approx(4 / 20))
    assert found.done == pytest.approx(0.6)
    assert [attempt.order_id for attempt in found.open_attempts] == ["search-1-0"]
    assert found.seconds == 5.0
    assert found.cpu_s == 24.0
