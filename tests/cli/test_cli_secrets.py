"""Secrets planted wherever a user may put one: none is in any output, nor in any file of the study."""

from pathlib import Path

import pytest

from mmdistill.cli import running
from mmdistill.records.rows import TABLES

# Twenty values, none a part of another.
SECRETS = [f"pl4nted{number:02d}Secret" for number in range(20)]


@pytest.fixture
def planted(tmp_path, monkeypatch, study_file, inline):
    """Return the arguments of a run; secrets are in environment, file, edits, command line and errors."""
    s = iter(SECRETS)
    for name in ("RAY_AUTH_TOKEN", "MMDISTILL_API_KEY", "AWS_SECRET_ACCESS_KEY", "WANDB_PASSWORD"):
        monkeypatch.setenv(name, next(s))
    monkeypatch.setenv("MMDISTILL_STORE", f"https://me:{next(s)}@host/x")
    question = f"Help? see https://me:{next(s)}@host/?token={next(s)}"
    text = study_file.read_text().replace("Do privileged modalities help?", question)
    study_file.write_text(f'# api_key = "{next(s)}"\n# password: {next(s)}\n{text}')
    asked = f"auth={next(s)} secret={next(s)} hf_{next(s)}Ab12"
    edits = [f'contrasts=[{{question="{asked}", arm="hinton", against="student_only"}}]']
    errors = [f"401 Authorization: Bearer {next(s)}", f"refused {SECRETS[0]}", f"no access_key={next(s)}"]
    errors += [f"s3://id:{next(s)}@bucket is away", f"--token {next(s)} is no option"]
    execute = running.on_ray

    def with_errors(session, cache, listen):
        order = session.ready([], 1)[0]
        for error in errors:
            number = session.folder.begin_attempt(order.order_id)
            session.folder.end_attempt(order.order_id, number, "failed", error)
        execute(session, cache, listen)

    monkeypatch.setattr(running, "on_ray", with_errors)
    command = ["run", str(study_file), *edits, "--output", str(tmp_path / "out" / "tiny")]
    hidden = ["--api-key", next(s), f"--password={next(s)}", f"https://me:{next(s)}@host/x"]
    hidden_last = f"token={next(s)}"
    assert next(s, None) is None
    monkeypatch.setattr("sys.argv", ["mmdistill", *command, *hidden, hidden_last])
    return command


def test_no_secret_leaves(planted, call, tmp_path):
    study = tmp_path / "out" / "tiny"
    assert call(*planted).code == 0
    outputs = [call(*planted), call("run", planted[1], f"run.api_key={SECRETS[0]}", "--output", study)]
    outputs += [call("run", planted[1], f"search.token={SECRETS[1]}")]
    assert [answer.code for answer in outputs] == [0, 2, 2]
    for command in ("status", "verify", "rebuild"):
        outputs += [call(command, study), call(command, study, "--json")]
    outputs += [call("table", study, "--format", layout) for layout in ("markdown", "csv", "json")]
    for table in TABLES:
        outputs += [call("query", study, f"FROM {table}", "--format", layout) for layout in ("csv", "json")]
    outputs += [call("query", study, f"SELECT '{name}'") for name in ("@provenance", "@failures")]
    outputs += [
        call("query", study, name) for name in ("@provenance", "@failures", "@attempts", "@", "@none")
    ]
    outputs += [call("plan", *planted[1:3], "--output", study, "--no-pilot"), call("schema")]
    outputs += [call("export", "optuna", study, tmp_path / "out" / "optuna.db")]
    outputs += [
        call("merge", tmp_path / "out" / "all", study),
        call("query", tmp_path / "out" / "all", "FROM studies"),
    ]
    shown = "\n".join(f"{answer.out}\n{answer.err}" for answer in outputs)
    assert shown.count("***") >= 20
    assert [secret for secret in SECRETS if secret in shown] == []
    written = b"\n".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written.count(b"***") >= 10
    assert [secret for secret in SECRETS if secret.encode() in written] == []
    given = Path(planted[1]).read_text() + " ".join(planted)
    assert sum(secret in given for secret in SECRETS) >= 6
