import json

import pytest

from mmdistill.redaction import HIDDEN, is_secret, redacted, redacted_tree

SECRET = "s3cr3t-Value_42"


@pytest.mark.parametrize(
    "text",
    [
        f"run x.toml --token {SECRET} --json",
        f"--api-key={SECRET}",
        f"run.api_key={SECRET} search.trials=4",
        f"HF_TOKEN={SECRET}",
        f"password: '{SECRET}'",
        f'{{"access_key": "{SECRET}", "rows": 3}}',
        f"https://me:{SECRET}@example.org/data",
        f"https://example.org/data?token={SECRET}&page=1",
        f"Authorization: Bearer {SECRET}",
        f"request with bearer {SECRET} was refused",
        f"credential = {SECRET}",
        f"auth={SECRET}",
        "ghp_" + "a1" * 10,
        "hf_" + "a1" * 10,
        "AKIA" + "AB12" * 4,
        "sk-" + "a1" * 12,
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_are_hidden_and_the_rest_stays(text):
    shown = redacted(text)
    assert HIDDEN in shown
    assert SECRET not in shown
    assert "a1a1" not in shown
    for kept in ("search.trials=4", "--json", "example.org/data", "page=1", '"rows": 3'):
        assert (kept in text) == (kept in shown)


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'audio'",
        "edit 'foo': an edit is `path.to.setting=value`; e.g. search.trials=4",
        "unknown key: foo",
        "terms.transport.k must be at most 15 with batch_size 16, but is 30",
        "the author of keyboard.py",
        "s3://bucket/key/data.parquet",
        "the tokens of a text",
        "hockey=3 monkey=4",
        "hinton@max_tokens=16",
        '{"max_tokens": 16, "text_tokens": 2.5, "keys": null, "auth": true}',
    ],
)
def test_ordinary_texts_stay_as_they_are(text):
    assert redacted(text) == text


def test_json_in_a_text_stays_json():
    inner = json.dumps({"note": f"token={SECRET}", "quoted": f'he said "key={SECRET}"', "x": 1})
    shown = json.loads(redacted(json.dumps({"inner": inner})))
    assert SECRET not in shown["inner"]
    assert json.loads(shown["inner"])["x"] == 1


@pytest.mark.parametrize("value", [16, 2.5, True, None, {"left": 1}, [1, 2]])
def test_json_stays_json_whatever_a_secret_name_holds(value):
    text = json.dumps({"text_tokens": value, "password": SECRET})
    assert json.loads(redacted(text)) == {"text_tokens": value, "password": HIDDEN}


def test_a_short_password_is_hidden_though_it_is_a_number():
    assert redacted("password=1234 max_tokens=1234") == f"password={HIDDEN} max_tokens=1234"


def test_names_tell_what_is_secret():
    secret = [
        "api_key",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "wandbApiKey",
        "password",
        "auth",
        "CREDENTIALS",
    ]
    assert [name for name in secret if not is_secret(name)] == []
    plain = ["PATH", "author", "keyboard", "tokenizer", "OMP_NUM_THREADS", "hockey"]
    assert [name for name in plain if is_secret(name)] == []


def test_trees_lose_what_a_name_calls_secret_and_keep_the_rest():
    tree = {"api_key": SECRET, "key": 3, "list": [f"token={SECRET}", ("a", 1.5)], "none": None}
    assert redacted_tree(tree) == {
        "api_key": HIDDEN,
        "key": 3,
        "list": [f"token={HIDDEN}", ["a", 1.5]],
        "none": None,
    }


def test_what_the_environment_calls_secret_is_hidden_everywhere(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "data")
    assert redacted(f"refused {SECRET} of data") == f"refused {HIDDEN} of data"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD"])
def test_the_working_directory_is_no_secret(monkeypatch, name):
    monkeypatch.setenv(name, "home/of/someone")
    assert redacted("home/of/someone/results is gone") == "home/of/someone/results is gone"
    monkeypatch.setenv("DB_PWD", "home/of/someone")
    assert redacted("home/of/someone/results is gone") == f"{HIDDEN}/results is gone"
