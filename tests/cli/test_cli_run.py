import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mmdistill.cli import running
from mmdistill.cluster.inline import run_inline
from mmdistill.errors import MmdistillError
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.pipeline.prices import bill, recorded_prices
from mmdistill.records.study import StudyFolder
from mmdistill.reports.query import query


def refuse(session, cache, listen):
    raise AssertionError("there is nothing to execute")


def test_prints_verdict_table_price_and_paths(first_run):
    assert first_run.code == 0
    assert first_run.out.startswith(
        "# tiny: accuracy on planted (test rows)\n\n- Do privileged modalities help?"
    )
    assert "| student_only " in first_run.out
    price = (
        r"One training costs a median of \d+\.\d\d and at most \d+\.\d\d CPU-s \((hinton|student_only)\)\."
    )
    assert re.search(price, first_run.out)
    assert f"mmdistill tensorboard {first_run.folder}" in first_run.out
    assert (first_run.folder / "compact" / "trials.parquet").is_file()
    assert any((first_run.folder / "tensorboard").rglob("*tfevents*"))


def test_progress_is_one_plain_line_per_order_on_stderr(first_run):
    *lines, bill = first_run.lines
    assert len(lines) == len(StudyFolder.open(first_run.folder).final_ids())
    assert re.fullmatch(
        r"\[ 1/8\] student_only: search, generation 0 +2 runs +\d+\.\d s",
        next(line for line in lines if "student_only: search" in line),
    )
    assert lines[-1].startswith("[ 8/8] ")
    assert re.fullmatch(r"Nothing like it was timed before; used \d+ CPU-s, \d+% of it to train", bill)


def test_a_study_that_was_timed_before_ends_with_predicted_against_used(finished):
    before = recorded_prices(finished.parent, "cpu")
    found = bill(StudyFolder.open(finished), (), before)
    assert found.recorded == 1
    assert found.predicted == pytest.approx(found.used, rel=0.02)
    assert 0 < found.trained <= found.used
    text = running._bill_text(found)
    assert re.fullmatch(
        r"Predicted \d+ CPU-s \(100% of it from recorded timings\), used \d+ CPU-s, \d+% of it to train", text
    )


def test_a_second_run_executes_nothing_and_prints_the_same_table(call, monkeypatch, first_run):
    monkeypatch.setattr(running, "on_ray", refuse)
    second = call("run", first_run.folder.parent / "tiny.toml", "--output", first_run.folder)
    assert second.code == 0
    assert re.fullmatch(r"Nothing left to do: \d+ orders are on record\n", second.err)
    assert second.out == first_run.out


def test_a_finished_study_never_imports_ray(python, finished):
    code = """
import sys
from pathlib import Path
from mmdistill.cli.main import main
assert main(["run", sys.argv[1], "--output", sys.argv[2]]) == 0
assert "ray" not in sys.modules
"""
    done = python(code, finished.parent / "tiny.toml", finished)
    assert done.returncode == 0, done.stderr
    assert "Nothing left to do" in done.stderr


def test_json_has_table_price_and_paths(call, finished):
    answer = call("run", finished.parent / "tiny.toml", "--json", "--output", finished)
    assert answer.code == 0
    assert [arm["name"] for arm in answer.json["table"]["arms"]] == ["student_only", "hinton"]
    assert answer.json["price"]["median_cpu_s"] > 0
    assert answer.json["failed_orders"] == {}
    assert answer.json["paths"]["study"] == str(finished)


def test_folder_name_edits_and_cache_are_obeyed(call, inline, study_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = call("run", study_file, "name=other", "search.trials=1", "search.startup=1", "--cache", "stages")
    assert answer.code == 0
    root = tmp_path / "results" / "other"
    row = StudyFolder.open(root).row
    assert (row.name, row.trials) == ("other", 1)
    assert any((tmp_path / "stages").iterdir())
    assert not (root / "cache").exists()


def test_lanes_are_measured_once_and_read_back(call, inline, study_file, tmp_path, monkeypatch):
    measured = iter([2])
    monkeypatch.setattr("mmdistill.studies.lanes.best_lanes", lambda *_: next(measured))
    auto = (study_file, "resources.lanes=auto", "--output", tmp_path / "out")
    first, again = call("run", *auto), call("run", *auto)
    assert (first.code, again.code) == (0, 0)
    said = 'resources.lanes = "auto": up to 2 runs train together, measured on this machine'
    assert said in first.lines
    assert "resources.lanes" not in again.err
    assert StudyFolder.open(tmp_path / "out").resolved["lanes"] == 2
    planned = call("plan", *auto)
    assert "up to 2 runs train together, measured when the study began." in " ".join(planned.out.split())


def test_lanes_for_a_cluster_are_said_to_be_measured_here(call, study_file, tmp_path, monkeypatch):
    def stopped(session, cache, listen, address):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "on_ray", stopped)
    monkeypatch.setattr("mmdistill.studies.lanes.best_lanes", lambda *_: 2)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    flags = ("--output", tmp_path / "out", "--address", "10.0.0.1:6379")
    said = call("run", study_file, "resources.lanes=auto", *flags).lines[0]
    assert said.endswith(
        "2 runs train together, measured on this machine and not on the nodes of 10.0.0.1:6379"
    )


def test_every_problem_of_a_file_is_one_line_and_nothing_is_written(call, study_file, tmp_path):
    study_file.write_text(
        study_file.read_text().replace('recipe = "hinton"', 'recipe = "hintn"').replace('"audio"', '"audoi"')
    )
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert answer.code == 2
    assert answer.out == ""
    assert len(answer.lines) == 2
    assert all(line.startswith(f"mmdistill: {study_file}: ") for line in answer.lines)
    assert "did you mean 'hinton'?" in answer.err
    assert "did you mean 'audio'?" in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_changed_study_does_not_continue_another(call, finished, command):
    file = finished.parent / "tiny.toml"
    answer = call(command, file, "search.trials=3", "--output", finished)
    assert answer.code == 2
    assert answer.lines == [
        f"mmdistill: {finished / 'study.json'}: search.trials: 2 -> 3; "
        "run with another --output, or restore the value"
    ]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_refuses_a_folder_that_holds_something_else(call, study_file, tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    answer = call(command, study_file, "--output", tmp_path / "out")
    assert answer.code == 2
    assert answer.lines == [
        f"mmdistill: {tmp_path / 'out'}: the folder holds no study, but 'thesis.tex'; "
        "give a new or an empty folder as --output"
    ]


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("flag", ["--output", "--cache"])
def test_refuses_a_file_as_a_folder(call, study_file, flag, command):
    answer = call(command, study_file, flag, study_file)
    assert answer.code == 2
    assert answer.lines == [f"mmdistill: {study_file}: this is not a folder; give another one"]
    answer = call(command, study_file, flag, study_file / "below")
    assert answer.code == 2
    assert answer.lines == [f"mmdistill: {study_file / 'below'}: not a directory; give another path"]


@pytest.mark.parametrize("flag", ["--output", "--cache"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_starts(call, study_file, tmp_path, flag):
    # Not even root may make a folder there.
    folders = {"--output": tmp_path / "out", flag: "/proc/nope"}
    answer = call("run", study_file, *(text for pair in folders.items() for text in pair))
    assert answer.code == 2
    assert re.fullmatch(
        f"mmdistill: /proc/nope: this folder cannot be made: .*; give a folder of yours as {flag}\n",
        answer.err,
    )


def test_one_driver_per_study(call, inline, study_file, tmp_path, monkeypatch):
    def second_driver(session, cache, listen):
        again = call("run", study_file, "--output", tmp_path / "out")
        assert again.code == 1
        assert re.fullmatch(rf"mmdistill: {tmp_path / 'out'} is being run by process \d+ .*\n", again.err)
        run_inline(session, StageCache(cache), listen)

    monkeypatch.setattr(running, "on_ray", second_driver)
    assert call("run", study_file, "--output", tmp_path / "out").code == 0


def test_an_interrupted_run_says_how_to_resume_and_resumes(call, study_file, tmp_path, monkeypatch):
    def stopped(session, cache, listen):
        run_inline(session, StageCache(cache), listen, most=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "on_ray", stopped)
    monkeypatch.setattr(sys, "argv", ["bin/mmdistill", "run", "my study.toml"])
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert answer.code == 130
    assert answer.out == ""
    assert answer.lines[-2:] == [
        "Stopped; 2 orders are on record. The same command resumes:",
        "  mmdistill run 'my study.toml'",
    ]
    assert (tmp_path / "out" / "lease" / "1.end.json").exists()
    code = running.run_study(
        study_file,
        output=tmp_path / "out",
        executor=lambda s, cache, listen: run_inline(s, StageCache(cache), listen),
    )
    assert code == 0


def test_an_interrupt_before_the_start_leaves_nothing(call, study_file, tmp_path, monkeypatch):
    def interrupted(file, where):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "open_study", interrupted)
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert (answer.code, answer.lines) == (130, ["mmdistill: interrupted"])
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_a_real_process_with_130(finished, tmp_path):
    code = """
import sys
from pathlib import Path
from mmdistill.cli import running
from mmdistill.cli.main import main
def wait(session, cache, listen):
    import time
    print("waiting", flush=True)
    time.sleep(60)
running.on_ray = wait
sys.exit(main(["run", sys.argv[1], "--output", sys.argv[2]]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(finished.parent / "tiny.toml"), str(tmp_path / "out")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "The same command resumes" in err


def test_interrupted_on_ray_counts_as_ctrl_c(monkeypatch):
    launching = pytest.importorskip("mmdistill.cluster.launch")

    def end(*_):
        raise launching.Interrupted("ended")

    monkeypatch.setattr(launching, "launch", end)
    with pytest.raises(KeyboardInterrupt):
        running.on_ray(None, None, None)


def test_orders_that_failed_for_good_give_3(call, study_file, tmp_path, monkeypatch, inline):
    def failing(order, study, *others):
        if order.kind != "confirm" or "hinton" not in order.title:
            return run_order(order, study, *others)
        attempt = study.begin_attempt(order.order_id)
        study.end_attempt(order.order_id, attempt, "failed", "MemoryError: too large")
        return "failed"

    monkeypatch.setattr("mmdistill.cluster.inline.run_order", failing)
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert answer.code == 3
    assert "1 order failed for good:" in answer.err
    assert "1 x MemoryError: too large" in answer.err
    assert "run again with --retry-failed" in answer.err
    assert [line.split()[-1] for line in answer.lines if "hinton: confirm" in line] == [
        "failed",
        "failed",
        "up",
    ]
    assert answer.err.count("[ 8/8]") == 1
    monkeypatch.setattr(running, "on_ray", refuse)
    assert call("run", study_file, "--output", tmp_path / "out").code == 3
    monkeypatch.undo()
    monkeypatch.setattr(running, "on_ray", lambda s, cache, listen: run_inline(s, StageCache(cache), listen))
    again = call("run", study_file, "--output", tmp_path / "out", "--retry-failed")
    assert again.code == 0
    assert "1 of 1 failed orders are tried again" in again.err
    rows = query(tmp_path / "out", "SELECT DISTINCT status FROM trials").to_pylist()
    assert rows == [{"status": "complete"}]
    assert call("verify", tmp_path / "out").code == 0


def test_a_failed_search_stays_once_winners_were_selected(call, study_file, tmp_path, monkeypatch, inline):
    def failing(order, study, *others):
        failed = order.kind == "search" and "hinton" in order.title and not order.lanes[0].number
        return "failed" if failed else run_order(order, study, *others)

    monkeypatch.setattr("mmdistill.cluster.inline.run_order", failing)
    edits = ("search.startup=1", "search.generation=1")
    assert call("run", study_file, *edits, "--output", tmp_path / "out").code == 3
    again = call("run", study_file, *edits, "--output", tmp_path / "out", "--retry-failed")
    assert again.code == 3
    assert "0 of 1 failed orders are tried again" in again.err
    assert "The others are of the search, and the winners were selected without them." in again.err


def test_a_failed_search_of_an_added_arm_is_tried_again_until_it_has_a_winner(capsys):
    def failed(name, kind, *arms):
        rows = [SimpleNamespace(arm=arm) for arm in arms]
        return SimpleNamespace(order_id=name, kind=kind, trials=rows, is_given_up=True)

    finals = [failed("old", "search", "hinton"), failed("new", "search", "added"), failed("s", "stages")]
    withdrawn = []
    folder = SimpleNamespace(
        selection=lambda: {"winners": [{"arm": "hinton"}]}, finals=lambda: finals, withdraw=withdrawn.append
    )
    running._withdraw_failed(folder)
    assert withdrawn == ["new", "s"]
    assert "2 of 3 failed orders are tried again" in capsys.readouterr().err


def test_orders_whose_process_died_every_time_give_3(call, study_file, tmp_path, monkeypatch, inline):
    def dying(order, study, *others):
        if order.kind != "confirm" or "hinton" not in order.title:
            return run_order(order, study, *others)
        study.begin_attempt(order.order_id)
        return "failed"

    monkeypatch.setattr("mmdistill.cluster.inline.run_order", dying)
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert answer.code == 3
    assert "1 x its process died" in answer.err


def test_an_executor_that_gives_up_is_a_failure(call, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "on_ray", lambda *_: None)
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert answer.code == 1
    assert answer.lines == [f"mmdistill: {tmp_path / 'out'}: the study did not finish; run it again to go on"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MmdistillError("no CPU is free"), "mmdistill: no CPU is free"),
        (OSError(28, "No space left on device", "x.json"), "mmdistill: x.json: No space left on device"),
    ],
)
def test_errors_on_purpose_have_no_traceback(call, study_file, tmp_path, monkeypatch, error, line):
    def fail(session, cache, listen):
        raise error

    monkeypatch.setattr(running, "on_ray", fail)
    answer = call("run", study_file, "--output", tmp_path / "out")
    assert (answer.code, answer.lines) == (1, [line])
