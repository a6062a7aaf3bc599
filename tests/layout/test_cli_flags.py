"""What people type is frozen: a change here is a change for every user, and belongs in the changelog."""

import pytest

from mmdistill.cli.main import app

FLAGS = {
    "run": [
        "FILE",
        "EDITS",
        "--output",
        "--cache",
        "--takeover",
        "--retry-failed",
        "--address",
        "--json",
    ],
    "plan": ["FILE", "EDITS", "--output", "--cache", "--pilot", "--no-pilot", "--json"],
    "forecast": ["FILE", "EDITS", "--json"],
    "status": ["STUDY", "--json"],
    "table": ["STUDY", "--format", "--rows", "--columns", "--metric", "--standalone", "--json"],
    "figure": ["STUDY", "KIND", "--output", "--rows", "--curve", "--with", "--json"],
    "report": ["STUDY", "--output", "--json"],
    "why": ["STUDY", "--arm", "--metric", "--json"],
    "rerun": ["STUDY", "TRIAL", "--arm", "--cache", "--fresh", "--tolerance", "--json"],
    "importance": ["STUDY", "--arm", "--method", "--json"],
    "compare": ["STUDIES", "MORE", "--json"],
    "query": ["PATH", "SQL", "--format", "--output", "--limit", "--json"],
    "schema": ["--json"],
    "verify": ["STUDY", "--cache", "--json"],
    "rebuild": ["STUDY", "--json"],
    "merge": ["OUTPUT", "STUDIES", "--json"],
    "tensorboard": ["STUDY", "--port"],
    "export": ["FORMAT", "STUDY", "TARGET", "--runs", "--json"],
    "datasets": ["--json"],
    "recipes": ["--json"],
    "losses": ["--json"],
    "doctor": ["--json"],
}
# What prints no data needs no JSON.
SERVERS = {"tensorboard"}


def test_commands_are_those_on_the_list():
    assert {name for name in app if not name.startswith("-")} == set(FLAGS)
    assert {name for name in app if name.startswith("-")} == {"--help", "-h", "--version"}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_those_on_the_list(command):
    arguments = app[command].assemble_argument_collection()
    assert [name for argument in arguments for name in argument.names] == FLAGS[command]


@pytest.mark.parametrize("command", sorted(set(FLAGS) - SERVERS))
def test_every_command_that_prints_data_speaks_json(command):
    assert "--json" in FLAGS[command]


@pytest.mark.parametrize("command", FLAGS)
def test_every_command_explains_itself(command):
    assert app[command].help
    arguments = app[command].assemble_argument_collection()
    assert all(argument.parameter.help for argument in arguments)
