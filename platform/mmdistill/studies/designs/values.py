"""How values of settings are written in the names of arms."""

from typing import Any


def label_of(value: Any) -> str:
    """Return a value as part of a name: ``0.1``, ``true``, ``a+b``.

    Raises:
        ValueError: for a table, which has no short form.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(label_of(one) for one in value) or "none"
    if isinstance(value, dict):
        raise ValueError("a table has no short name: give `{ label = ..., edits = { ... } }` in an axis")
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def short(path: str) -> str:
    """Return a path without ``data.`` or ``terms.``, which go without saying."""
    root, _, rest = path.partition(".")
    return rest if rest and root in {"data", "terms"} else path
