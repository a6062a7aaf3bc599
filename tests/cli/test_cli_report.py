"""`mmdistill report`, and what every run leaves for its readers."""

from mmdistill.cli import report, running
from mmdistill.cli.report import PAGE, TABLE

LIGHT = """
import sys
from mmdistill.cli.main import main
loaded = {"jinja2", "matplotlib", "pandas", "pyarrow"} & set(sys.modules)
assert not loaded, loaded
"""


def test_a_run_ends_with_report_and_latex_table(first_run):
    page, table = first_run.folder / PAGE, first_run.folder / TABLE
    lines = first_run.out.splitlines()
    assert f"report  {page}" in lines
    assert f"latex   {table}" in lines
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert "\\begin{tabular}" in table.read_text("utf-8")


def test_the_command_writes_the_same_page_where_it_is_told(call, finished, tmp_path):
    answer = call("report", finished, "--output", tmp_path / "new" / "page.html")
    assert answer.code == 0
    assert answer.out == f"{tmp_path / 'new' / 'page.html'}\n"
    assert (tmp_path / "new" / "page.html").read_bytes() == (finished / PAGE).read_bytes()


def test_the_page_lies_in_the_study_by_default(call, finished):
    assert call("report", finished, "--json").json == {"report": str(finished / PAGE)}


def test_a_folder_is_no_file_to_write(call, finished, tmp_path):
    answer = call("report", finished, "--output", tmp_path)
    assert answer.code == 2
    assert answer.err == f"mmdistill: {tmp_path}: this is a folder; name a file, e.g. report.html\n"


def test_no_study_no_report(call, tmp_path):
    answer = call("report", tmp_path / "nothing", "--output", tmp_path / "page.html")
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert not (tmp_path / "page.html").exists()


def test_a_report_that_cannot_be_written_never_fails_the_study(call, finished, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "on_ray", None)
    monkeypatch.setattr(report, "_write", full)
    answer = call("run", finished.parent / "tiny.toml", "--output", finished)
    assert answer.code == 0
    assert answer.lines[1:] == [
        f"{finished / name} was not written: [Errno 28] No space left on device. "
        "The study is complete; `mmdistill report` tries again."
        for name in (PAGE, TABLE)
    ]
    assert "report  " not in answer.out


def test_a_defect_of_the_page_never_fails_the_study(call, finished, monkeypatch):
    def defect(*_):
        raise KeyError("x")

    monkeypatch.setattr(report, "page", defect)
    answer = call("run", finished.parent / "tiny.toml", "--output", finished, "--json")
    assert answer.code == 0
    assert set(answer.json["paths"]) == {"study", "tables", "tensorboard", "latex"}
    assert f"{finished / PAGE} was not written: 'x'" in answer.err


def test_help_loads_nothing_that_draws_or_writes(python):
    done = python(LIGHT)
    assert done.returncode == 0, done.stderr
