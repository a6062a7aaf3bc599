"""The further sections of the table: only where a study can answer, and the same numbers as the data."""

import json
from dataclasses import replace

import pytest

from mmdistill.reports.ablation import summarise_tables
from mmdistill.reports.readings import readings_of
from mmdistill.reports.render import markdown
from mmdistill.reports.render_curves import curve_notes, curve_sections, curves_of, with_curves


def text_of(tables):
    return with_curves(summarise_tables(tables), curves_of(readings_of(tables), tables))


def test_a_study_without_a_label_axis_gains_one_line(made):
    tables = made.tables()
    plain = markdown(summarise_tables(tables)).splitlines()
    assert text_of(tables).splitlines()[: len(plain)] == plain
    (line,) = text_of(tables).splitlines()[len(plain) :]
    # A confirmed run and its test reading have the same score in a made study.
    assert (
        line == "- Validation minus test score: at most +0.000 [0.000, 0.000] (student_only, n = 10 seeds)."
    )


def test_a_label_axis_gains_a_table_of_what_each_arm_is_worth(new_study, rows_of):
    names = ["student_only", "student_only@2", "student_only@3"]
    arms = [{"name": name, "recipe": "student_only"} for name in names]
    study = new_study([*arms, "hinton"])
    scores = dict(zip([*names, "hinton"], (0.5, 0.65, 0.8, 0.99), strict=True))
    study.fill(scores, rows=200)
    fractions = dict(zip(scores, (0.2, 0.4, 1.0, 0.4), strict=True))
    study.trials = [
        replace(trial, config_json=json.dumps({"data": {"label_fraction": fractions[trial.arm]}}))
        for trial in study.trials
    ]
    tables = study.tables()
    text, curves = text_of(tables), curves_of(readings_of(tables), tables)
    rows = rows_of(text, "label curve")
    assert [(row["label curve"], row["labels"]) for row in rows] == [
        (name, f"{fraction:.0%}") for name, fraction in fractions.items()
    ]
    assert rows[0]["= student_only at"] == "itself"
    assert rows[3]["= student_only at"] == ">=100% [>=100%, >=100%]"
    assert rows[3]["times its labels"] == ">=2.5"
    summary = {arm.name: arm.score for arm in summarise_tables(tables).arms}
    for row in rows:
        assert row["accuracy"].split()[0] == f"{summary[row['label curve']].mean:.3f}"
    assert "nothing is extrapolated" in " ".join(text.split())
    assert len(curve_sections(curves, score_name="accuracy", baseline="student_only")) == 1


def test_a_metric_beside_the_score_has_no_curves(made):
    ablation = summarise_tables(made.tables())
    assert with_curves(ablation, None) == markdown(ablation)


def test_before_anything_is_confirmed_there_is_nothing_to_add(made):
    made.trials = [trial for trial in made.trials if trial.phase == "search"]
    made.predictions, made.openings = [], []
    tables = made.tables()
    curves = curves_of(readings_of(tables), tables)
    assert curve_notes(curves) == []
    assert [len(curve.points) for curve in curves.budget] == [4, 4, 4]
    assert curves.budget[0].points[-1].loss.observed == pytest.approx(0.7)
