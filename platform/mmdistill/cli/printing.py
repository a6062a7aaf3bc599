"""Values as text and as JSON."""

import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from mmdistill.redaction import redacted

WIDEST_CELL = 80


def command_line() -> list[str]:
    """Return the command that started this process, by the program's name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def say(message: str) -> None:
    """Print a message for people, on stderr, without secrets."""
    print(redacted(message), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON has no number for is null."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a value as plain JSON values."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def text_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Return aligned columns under a header; numbers to the right, long cells cut."""
    numeric = [all(_is_number(line[i]) for line in lines) and bool(lines) for i in range(len(header))]
    cells = [[_cell(text) for text in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    padded = [
        [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        for line in cells
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def points(sentences: Sequence[str]) -> str:
    """Return sentences without full stops as a list, wrapped."""
    return "\n".join(
        textwrap.fill(f"{one}.", 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
        for one in sentences
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        # Without the sign of a zero that was rounded.
        return f"{value + 0.0:.6g}"
    text = value if isinstance(value, str | Path) else json.dumps(plain(value))
    # A stray escape sequence in a name must not steer the terminal.
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= WIDEST_CELL else f"{shown[: WIDEST_CELL - 1]}…"
