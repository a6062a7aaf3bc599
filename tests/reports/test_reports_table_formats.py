"""One table in every format: the same numbers, names as they are, bold only where the data support it."""

import csv
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from mmdistill.cli.printing import plain
from mmdistill.cli.table import Layout, show_table
from mmdistill.errors import UnknownNameError
from mmdistill.reports.ablation import summarise_readings, summarise_tables
from mmdistill.reports.columns import COLUMNS, usual
from mmdistill.reports.paper import STANDALONE, escaped, latex, web
from mmdistill.reports.readings import readings_of
from mmdistill.reports.render import as_csv, exact, grid
from mmdistill.reports.standing import Standing, standing

HOSTILE = r'a_b&c%d$e#f{g}h~i^j\k<b>"ü中±</td>'
NUMBER = re.compile(r"[+-]?\d+\.\d{3}")


@pytest.fixture
def best(new_study):
    """One arm far above the others, one of them with a hostile name."""
    study = new_study(["student_only", "hinton", HOSTILE])
    study.fill({"student_only": 0.5, "hinton": 0.95, HOSTILE: 0.6})
    return readings_of(study.tables())


def tables_of(readings, columns):
    ablation, marks = summarise_readings(readings), standing(readings)
    arms = ablation.arms
    return {
        "markdown": grid(ablation, arms, columns),
        "latex": latex(ablation, arms, columns, marks),
        "html": html.unescape(web(ablation, arms, columns, marks)),
    }


def numbers_of(line):
    return NUMBER.findall(line.replace("{", "").replace("}", ""))


def line_of(text, name):
    begins = re.compile(rf'(?:\| |<tr><th scope="row">)?{re.escape(name)}(?: |<)')
    return next(line for line in text.splitlines() if begins.match(line))


def test_every_format_has_the_same_numbers(made):
    readings = readings_of(made.tables())
    ablation = summarise_readings(readings)
    columns = ["score", "minus_baseline", "minus_reference", "log_loss", "calibration_error", "worst_class"]
    printed = tables_of(readings, columns)
    lines = {line["arm"]: line for line in csv.DictReader(io.StringIO(as_csv(ablation)))}
    summary = {arm["name"]: arm for arm in plain(ablation)["arms"]}
    for arm in ablation.arms:
        line, found = lines[arm.name], summary[arm.name]
        half = float(line["accuracy_high"]) - float(line["accuracy"])
        expected = [f"{float(line['accuracy']):.3f}", f"{half:.3f}"]
        for against, kinds in (("baseline", ("seeds", "crossed")), ("reference", ("seeds",))):
            if line[f"minus_{against}"]:
                expected.append(f"{float(line[f'minus_{against}']):+z.3f}")
                expected += [
                    f"{float(line[f'minus_{against}_{k}_{e}']):z.3f}" for k in kinds for e in ("low", "high")
                ]
                assert float(line[f"minus_{against}"]) == found[f"against_{against}"]["seeds"]["mean"]
        expected += [f"{float(line[name]):.3f}" for name in ("log_loss", "calibration_error", "worst_class")]
        assert float(line["accuracy"]) == found["score"]["mean"]
        for kind, text in printed.items():
            name = escaped(arm.name) if kind == "latex" else arm.name
            assert numbers_of(line_of(text, name)) == expected


def test_the_best_mean_is_bold_where_it_is_above_every_other_and_the_second_is_underlined(best):
    printed = tables_of(best, ["n", "score"])
    assert re.search(r"^hinton & 8 & \$\\mathbf\{0\.\d{3}\} \\pm", printed["latex"], re.MULTILINE)
    assert re.search(r"^a.*\$\\underline\{0\.\d{3}\} \\pm", printed["latex"], re.MULTILINE)
    assert printed["latex"].count(r"\mathbf") == printed["latex"].count(r"\underline") == 1
    assert re.search(r"hinton</th>.*<b>0\.\d{3}</b> ±", printed["html"])
    assert "Bold: highest mean, above every other arm" in printed["latex"]


def test_marks_among_some_rows_claim_no_more_than_these(best):
    ablation, all_marks = summarise_readings(best), standing(best)
    some = [arm for arm in ablation.arms if arm.name != HOSTILE]
    for render in (latex, web):
        marks = standing(best, [arm.name for arm in some])
        assert "above every other arm shown by seeds" in render(ablation, some, ["score"], marks)
        none = render(ablation, some, ["score"], marks._replace(best=None))
        assert "no arm shown is above every other one by seeds" in none
        assert "above every other arm by seeds" in render(ablation, ablation.arms, ["score"], all_marks)


def test_nothing_is_bold_without_support(new_study):
    study = new_study(["student_only", "hinton"])
    study.fill({"student_only": 0.7, "hinton": 0.71})
    printed = tables_of(readings_of(study.tables()), ["score"])
    assert r"\mathbf" not in printed["latex"]
    assert "Nothing is bold" in printed["latex"]


def test_the_notes_say_what_a_reader_must_know(best):
    text = tables_of(best, ["score", "verdict"])["latex"]
    for words in (
        "n counts seeds",
        "exact sign-flip test",
        "inside the margin (two one-sided tests at .05, not adjusted)",
        "Budget per arm: ",
        "Reading: re-tuned",
        "The test split was opened 1 time(s)",
    ):
        assert words in text


def test_names_are_shown_as_they_are_and_markup_in_them_is_none(best):
    ablation, marks = summarise_readings(best), standing(best)
    page = web(ablation, ablation.arms, usual(ablation), marks)
    assert html.escape(HOSTILE) in page
    assert '<b>"' not in page
    assert page.count("</tr>") == 4
    assert escaped(r"\{}$&#%_^~<>|") == (
        r"\textbackslash{}\{\}\$\&\#\%\_\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}\textbar{}"
    )
    assert escaped('"é±…\n中') == r"""''\'{e}$\pm$\ldots{} [U+4E2D]"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_table_compiles(best, tmp_path):
    ablation = summarise_readings(best)
    file = tmp_path / "table.tex"
    file.write_text(STANDALONE % latex(ablation, ablation.arms, list(COLUMNS), standing(best)), "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # Every column there is, and still no wider than the page.
    assert b"Overfull" not in done.stdout
    assert (tmp_path / "table.pdf").read_bytes().startswith(b"%PDF")


def test_chosen_columns_keep_their_exact_values(made):
    ablation = summarise_tables(made.tables())
    whole = exact(ablation.arms[2], ablation)
    some = exact(ablation.arms[2], ablation, ["score", "p", "verdict"])
    assert list(some) == [
        "arm",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "minus_baseline_p",
        "minus_baseline_adjusted_p",
        "verdict",
        "planned",
        "stamps",
    ]
    assert some == {key: whole[key] for key in some}
    lines = list(csv.DictReader(io.StringIO(as_csv(ablation, ablation.arms[:1], ["n"]))))
    assert lines == [{"arm": "student_only", "replicate": "seeds", "n": "10", "stamps": ""}]


def test_every_column_has_a_cell_and_exact_values_for_every_arm(made):
    ablation = summarise_tables(made.tables())
    for name, column in COLUMNS.items():
        for arm in ablation.arms:
            assert column.cell(arm, ablation).text
            assert exact(arm, ablation, [name]).keys() >= {"arm", "stamps"}
            assert len(exact(arm, ablation, [name])) == 2 + len(column.keys)


def test_another_metric_has_means_and_differences_but_no_verdict(made):
    readings = readings_of(made.tables(), "log_loss")
    ablation = summarise_readings(readings)
    assert ablation.score_name == "log_loss"
    assert ablation.arms[0].score.mean == pytest.approx(0.5)
    assert [arm.against_baseline.verdict for arm in ablation.arms[1:]] == [None, None]
    assert ablation.sentences == ()
    assert "log_loss is not the score the study is about" in ablation.warnings[0]
    same = summarise_readings(readings_of(made.tables(), "accuracy"))
    # Intervals that do not exist are NaN, which equals nothing.
    assert plain(same) == plain(summarise_tables(made.tables()))


@pytest.mark.parametrize("columns", [[], ["n"]])
@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_format_says_what_every_table_must_say(made, commit, tmp_path, capsys, layout, columns):
    made.study = dataclasses.replace(made.study, tuning="shared")
    commit(tmp_path / "study", made)
    show_table(tmp_path / "study", layout, rows=["hinton"], columns=columns)
    printed = " ".join(capsys.readouterr().out.split())
    assert "winners were searched in fold 0 alone" in printed


def test_the_notes_of_json_are_those_of_the_markdown(made, commit, tmp_path, capsys):
    made.trials = [run for run in made.trials if run.phase == "search"]
    commit(tmp_path / "study", made)
    printed = {}
    for layout in ("markdown", "json"):
        show_table(tmp_path / "study", layout, rows=["hinton"])
        printed[layout] = capsys.readouterr().out
    notes = json.loads(printed["json"])["notes"]
    assert [line for line in printed["markdown"].splitlines() if line.startswith("- ")] == [
        f"- {note}." for note in notes
    ]
    assert any("nothing repeated yet" in note for note in notes)


def test_an_unknown_metric_is_named_with_the_nearest(made):
    with pytest.raises(UnknownNameError, match=r"no metric is called 'acuracy'; did you mean 'accuracy'\?"):
        readings_of(made.tables(), "acuracy")


def test_the_golden_store_prints_in_every_format():
    from mmdistill.records.study import StudyFolder
    from mmdistill.records.tables import latest

    readings = readings_of(latest(StudyFolder.open(Path(__file__).parents[1] / "golden" / "store")))
    ablation = summarise_readings(readings)
    printed = tables_of(readings, usual(ablation))
    for arm in ablation.arms:
        assert (
            len({tuple(numbers_of(line_of(printed[kind], arm.name))) for kind in ("markdown", "html")}) == 1
        )
        assert numbers_of(line_of(printed["latex"], escaped(arm.name))) == numbers_of(
            line_of(printed["markdown"], arm.name)
        )
    assert Standing(None, None) != standing(readings)
