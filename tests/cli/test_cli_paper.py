"""Commands for papers: table formats, figures, why and rerun."""

import hashlib
import json
import re
import shutil

import pytest

from mmdistill.cli.table import chosen
from mmdistill.records.sealed import seal, unseal


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_table_prints_latex_and_html(call, finished):
    found = call("table", finished, "--format", "latex").out
    assert found.startswith("% needs \\usepackage{booktabs,graphicx}")
    assert "student\\_only & 2 & $" in found
    whole = call("table", finished, "--format", "latex", "--standalone").out
    assert whole.startswith("\\documentclass")
    assert found in whole
    assert call("table", finished, "--format", "html").out.startswith("<table>\n<caption>")


def test_table_takes_rows_columns_and_a_metric(call, finished):
    found = call("table", finished, "--rows", "h*", "--columns", "log_loss", "n")
    lines = [line for line in found.out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["arm", "log-loss", "n"]
    assert len(lines) == 3
    data = call("table", finished, "--columns", "score", "--metric", "log_loss", "--json").json
    assert [set(row) for row in data["rows"]] == [
        {"arm", "log_loss", "log_loss_low", "log_loss_high", "stamps"}
    ] * 2
    line = call("table", finished, "--format", "csv", "--rows", "hinton", "--columns", "n").out
    assert line == "arm,replicate,n,stamps\nhinton,seeds,2,\n"


def test_table_names_every_wrong_name_at_once(call, finished):
    options = ["--rows", "hintom", "--columns", "scor", "--metric", "acuracy", "--standalone"]
    found = call("table", finished, *options)
    assert found.code == 2
    assert found.lines == [
        "mmdistill: --standalone: a preamble belongs to LaTeX, but the format is markdown; leave it out, or "
        "give --format latex",
        "mmdistill: --metric: no metric is called 'acuracy'; did you mean 'accuracy'?",
        "mmdistill: --rows: no arm is called 'hintom'; did you mean 'hinton'?",
        "mmdistill: --columns: no column is called 'scor'; did you mean 'score'?",
    ]


def test_rows_may_be_named_as_the_arm_that_was_merged(capsys):
    known = {"alone@1": "hinton", "alone": "alone", "hinton": "hinton"}
    problems = []
    assert chosen(known, [], "arm", "--rows", problems) == ["alone", "hinton"]
    assert capsys.readouterr().err == ""
    assert chosen(known, ["alone@1"], "arm", "--rows", problems) == ["hinton"]
    assert chosen(known, ["alone*", "hinton"], "arm", "--rows", problems) == ["hinton", "alone"]
    assert capsys.readouterr().err == "alone@1 is hinton here: equal arms are one\n" * 2
    assert problems == []


def test_figure_writes_into_the_study_or_elsewhere(call, finished, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(finished, copy)
    found = call("figure", copy, "forest")
    assert found.out.splitlines() == [
        str(copy / "report" / "figures" / f"forest.{kind}") for kind in ("pdf", "png")
    ]
    assert call("verify", copy).code == 0
    found = call(
        "figure", copy, "forest", "--rows", "hinton", "--output", tmp_path / "figures", "--json"
    ).json
    assert found == {
        "files": [str(tmp_path / "figures" / f"forest.{kind}") for kind in ("pdf", "png")],
        "skipped": {},
    }


def test_figure_asked_for_in_vain_is_one_line(call, finished, tmp_path):
    found = call("figure", finished, "labels", "--output", tmp_path / "figures")
    assert found.code == 2
    (line,) = found.lines
    assert line.startswith("mmdistill: figure labels: the study has no label curve; ")
    assert (
        call("figure", finished, "--rows", "nobody")
        .lines[0]
        .startswith("mmdistill: --rows: no arm is called")
    )
    assert not (finished / "report" / "figures").exists()


def test_why_prints_runs_settings_and_the_command(call, finished):
    found = call("why", finished, "--arm", "hinton")
    data = call("why", finished, "--arm", "hinton", "--json").json
    assert found.code == 0
    for run in data["runs"]:
        assert run["trial_id"] in found.out
    assert f"mmdistill rerun {finished} --arm hinton" in found.out
    assert "Left out: nothing" in found.out
    assert data["settings"]["epochs"] == 2
    assert (
        data["provenance"]["git_commit"]
        == call("why", finished, "--arm", "student_only", "--json").json["provenance"]["git_commit"]
    )


def test_rerun_gives_every_run_behind_a_cell_bit_for_bit_and_changes_nothing(call, finished):
    before = hashes(finished)
    found = call("rerun", finished, "--arm", "hinton")
    assert found.code == 0
    assert found.out.count("same bit for bit") == 2
    assert "2 of 2 run(s) came out as recorded." in found.out
    assert "Test rows were read that opening 1 had read: no new opening, nothing was written." in found.out
    assert hashes(finished) == before


@pytest.mark.parametrize("phase", ["search", "validate", "confirm"])
def test_rerun_trains_teachers_again_too(call, finished, phase):
    asked = f"SELECT trial_id FROM trials WHERE arm = 'hinton' AND phase = '{phase}' LIMIT 1"
    (run,) = call("query", finished, asked, "--json").json
    found = call("rerun", finished, run["trial_id"], "--fresh", "--json").json
    (one,) = found["runs"]
    assert found["same"]
    assert (one["tolerance"], one["largest"], one["differences"]) == (0.0, None, [])
    assert one["compared"] > 20


def test_rerun_notices_a_record_that_is_not_so(call, finished, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(finished, copy)
    (run,) = call("query", copy, "SELECT * FROM trials WHERE phase = 'test' LIMIT 1", "--json").json
    path = copy / "finals" / f"{run['order_id']}.json"
    body = unseal(path, path.read_bytes())
    trial = next(one for one in body["trials"] if one["trial_id"] == run["trial_id"])
    trial["metrics"]["accuracy"] += 0.5
    path.write_bytes(seal(body))
    found = call("rerun", copy, run["trial_id"])
    assert found.code == 1
    assert re.search(
        r"DIFFERENT, not the same bit for bit; \d+ values, largest difference 0\.\d+ \(metrics\.acc",
        found.out,
    )
    assert "0 of 1 run(s) came out as recorded." in found.out
    assert call("rerun", copy, run["trial_id"], "--tolerance", "0.6").code == 0


def test_rerun_elsewhere_says_so_and_has_a_tolerance(call, finished, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(finished, copy)
    asked = "SELECT trial_id, order_id FROM trials WHERE phase = 'search' AND arm = 'student_only'"
    runs = call("query", copy, asked, "--json").json
    for order_id in {run["order_id"] for run in runs}:
        path = copy / "finals" / f"{order_id}.json"
        body = unseal(path, path.read_bytes())
        for trial in body["trials"]:
            trial |= {"host": "elsewhere", "epoch": 7}
            trial["metrics"]["accuracy"] += 0.01
        path.write_bytes(seal(body))
    before = hashes(copy)
    found = call("rerun", copy, *(run["trial_id"] for run in runs))
    assert found.code == 0
    assert found.out.count("same within 0.05") == 2
    assert found.out.count("largest difference 0.01 (metrics.accuracy)") == 2
    assert "Not as recorded: host was elsewhere, is " in found.out
    assert "No test row was read, nothing was written." in found.out
    assert hashes(copy) == before


def test_rerun_and_why_know_the_versions_of_each_attempt_not_only_of_the_newest_start(
    call, finished, tmp_path
):
    copy = tmp_path / "study"
    shutil.copytree(finished, copy)
    (run,) = call("query", copy, "SELECT * FROM trials WHERE phase = 'test' LIMIT 1", "--json").json
    for path in (copy / "attempts").glob(f"{run['order_id']}.*.begin*"):
        body = unseal(path, path.read_bytes())
        path.write_bytes(seal(body | {"torch": "2.0", "git_commit": "f00"}))
    assert "Not as recorded: torch was 2.0, is " in call("rerun", copy, run["trial_id"]).out
    assert call("rebuild", copy).code == 0
    made_with = call("why", copy, "--arm", run["arm"], "--json").json["provenance"]
    assert (made_with["torch"], made_with["git_commit"]) == ("2.0", "f00")


def test_rerun_names_every_unknown_run_and_what_lists_them(call, finished):
    found = call("rerun", finished, "nothing", "nobody")
    assert found.code == 2
    assert found.lines == [
        f"mmdistill: TRIAL: no run is called '{name}'; `mmdistill why` lists the runs of an arm"
        for name in ("nothing", "nobody")
    ]
    (line,) = call("rerun", finished).lines
    assert line.startswith("mmdistill: rerun: no run to compute again was named; give TRIAL or --arm")


def test_rerun_refuses_data_that_has_changed(call, finished, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(finished, copy)
    path = copy / "study.json"
    body = unseal(path, path.read_bytes())
    prints = json.dumps(body["resolved"]["fingerprints"])
    body["resolved"]["fingerprints"] = json.loads(re.sub(r'": "[0-9a-f]+"', '": "0"', prints))
    path.write_bytes(seal(body))
    (run,) = call("query", copy, "SELECT trial_id FROM trials LIMIT 1", "--json").json
    found = call("rerun", copy, run["trial_id"])
    assert found.code == 2
    assert found.lines[-1] == (
        "mmdistill: planted: the data is not what the study was computed on: its fingerprint differs; "
        "restore the data of the study"
    )


def test_table_and_why_load_neither_torch_nor_matplotlib(python, finished):
    code = """
import sys
from mmdistill.cli.main import main
assert main(["table", sys.argv[1], "--format", "csv"]) == 0
assert main(["why", sys.argv[1], "--arm", "hinton"]) == 0
loaded = {"torch", "ray", "matplotlib", "sklearn", "scikit_posthocs"} & set(sys.modules)
assert not loaded, loaded
"""
    done = python(code, finished)
    assert done.returncode == 0, done.stderr
