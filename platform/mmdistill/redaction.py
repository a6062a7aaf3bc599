"""Secrets in texts and in plain values become ``***``, before anything is written or printed."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

HIDDEN = "***"
# The last word of a name says what it holds: `api_key`, `HF_TOKEN`, `secretAccessKey`, but not `keyboard`.
_LAST_WORD = (
    r"(?:tokens?|secrets?|keys?|api_?keys?|passwords?|passwd|passphrase|pwd|auth|authorization|credentials?)"
)
_SECRET_NAME = re.compile(
    rf"(?:^|[^a-z])(?:[a-z]*(?:token|secret|password|apikey)s?|{_LAST_WORD})$", re.IGNORECASE
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Without a backslash, so that a text inside JSON stays JSON.
_VALUE = r"""(?:"[^"\\\n]*"|'[^'\\\n]*'|(?:(?:bearer|basic)\s+)?[^\s"',;&)}\]\\]+)"""
_STRONG = (
    r"[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|credential|api[_-]?key|access[_-]?key"
    r"|authorization)s?"
)
# What gives a value to such a name: `--token VALUE`; `key=VALUE`; `token: VALUE`, by an unmistakable name.
_GIVEN = tuple(
    re.compile(f"({before})({_VALUE})", re.IGNORECASE)
    for before in (
        rf"--[\w.-]*?{_LAST_WORD}(?:\s+|=)",
        rf"(?<![\w.-])(?:[\w.-]*[_.-])?{_LAST_WORD}[\"']?\s*=\s*",
        rf"(?<![\w.-]){_STRONG}[\"']?\s*[:=]\s*",
    )
)
_PATTERNS = (
    # Who logs in where: scheme://user:password@host.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@\"']+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # Forms that nothing else has: keys of GitHub, Hugging Face, Slack, AWS, OpenAI and Google, JWT, PEM.
    (
        re.compile(
            r"\b(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|hf_\w{16,}|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}"
            r"|sk-[\w-]{16,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        HIDDEN,
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL), HIDDEN),
)
# Without any of these no pattern can match: most texts are done with one look.
_HINT = re.compile(
    r"token|secret|key|passw|passphrase|pwd|auth|credential|://|bearer|basic|gh[pousr]_|github_pat|hf_|xox"
    r"|AKIA|ASIA|sk-|AIza|eyJ",
    re.IGNORECASE,
)
# `max_tokens=16`, `key = 3`: what may be a password is no mere amount otherwise.
_NUMBER = re.compile(r"[-+]?[\d.]{1,6}(?:e[-+]?\d{1,2})?", re.IGNORECASE)
_PASSWORD = re.compile(r"pass|pwd|secret", re.IGNORECASE)
# A shorter value of a secret variable may be an ordinary word.
_SHORTEST = 8
# Every shell sets these: the working directory, which is no password.
_DIRECTORIES = {"PWD", "OLDPWD"}


@cache
def is_secret(name: str) -> bool:
    """Return whether what goes by this name is a secret: it ends with token, key, password or the like."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name)) is not None


def redacted(text: str) -> str:
    """Return a text in which secrets are ``***``; a text without any is returned as it is.

    Secrets are values given to such a name (``--token x``, ``api_key=x``, ``password: x``), logins in URLs,
    tokens of a form that nothing else has, and the values of this process's secret environment variables. A
    text that is JSON stays JSON: it is read as :func:`redacted_tree` reads it.
    """
    return _without(_environment_secrets(), text)


def _without(values: Sequence[str], text: str) -> str:
    tree = _json(text)
    if tree is not None:
        hidden = _tree_without(values, tree)
        return text if hidden == tree else json.dumps(hidden)
    for value in values:
        text = text.replace(value, HIDDEN)
    if not _HINT.search(text):
        return text
    for given in _GIVEN:
        text = given.sub(_hidden, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _json(text: str) -> Any:
    """Return the object or the list that a text is, or None."""
    if text[:1] not in {"{", "["}:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _hidden(match: re.Match[str]) -> str:
    if _NUMBER.fullmatch(match[2]) and not _PASSWORD.search(match[1]):
        return match[0]
    quote = match[2][0] if match[2][0] in "\"'" else ""
    return f"{match[1]}{quote}{HIDDEN}{quote}"


def _environment_secrets() -> list[str]:
    named = (name for name in os.environ if is_secret(name) and name not in _DIRECTORIES)
    found = [value for name in named if len(value := os.environ[name]) >= _SHORTEST]
    return sorted(found, key=len, reverse=True)


def redacted_tree(value: Any) -> Any:
    """Return plain JSON values in which every text is :func:`redacted`, and those of a secret name hidden."""
    return _tree_without(_environment_secrets(), value)


def _tree_without(values: Sequence[str], tree: Any) -> Any:
    if isinstance(tree, str):
        return _without(values, tree)
    if isinstance(tree, Mapping):
        return {
            key: HIDDEN if isinstance(entry, str) and is_secret(str(key)) else _tree_without(values, entry)
            for key, entry in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_tree_without(values, entry) for entry in tree]
    return tree
