"""Draw the figures of a study into files."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmdistill.errors import InputError, Problem
from mmdistill.records.store import replace_atomically
from mmdistill.registry import import_submodules, unknown_name
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import paper_style, rendered

FORMATS = ("pdf", "png")
_KEPT = "-.+=@"


class Drawn(NamedTuple):
    """What became of a request for figures.

    Attributes:
        files: written, two per figure.
        skipped: why a kind was not drawn.
    """

    files: tuple[Path, ...]
    skipped: dict[str, str]


def kinds() -> list[str]:
    """Return the names of every kind of figure."""
    import_submodules("mmdistill.reports.figures")
    return list(FIGURES)


def draw(sources: Sources, output: Path, asked: Sequence[str] = ()) -> Drawn:
    """Write the figures of a study as PDF and PNG.

    Args:
        sources: the study.
        output: folder; made if it is not there.
        asked: kinds; by default every kind that the study can fill, the others are skipped with a reason.

    Raises:
        InputError: with every kind that does not exist, and every one asked for by name that the study cannot
            fill; nothing is written then.
    """
    known = kinds()
    problems = [unknown_name("figure", name, "KIND", known) for name in asked if name not in known]
    files: dict[str, bytes] = {}
    stems: set[str] = set()
    skipped: dict[str, str] = {}
    with paper_style():
        for kind in dict.fromkeys([name for name in asked if name in known] if asked else known):
            try:
                figures = FIGURES[kind](sources)
            except NothingToDrawError as error:
                skipped[kind] = f"{error.rule}; {error.mend}"
                problems += [Problem(f"figure {kind}", error.rule, error.mend)] if asked else []
                continue
            for suffix, figure in figures.items():
                stem = _new_stem(f"{kind}_{_plain(suffix)}" if suffix else kind, stems)
                files |= {f"{stem}.{layout}": rendered(figure, layout) for layout in FORMATS}
    if problems:
        raise InputError(problems)
    for name, content in files.items():
        replace_atomically(output / name, content)
    return Drawn(tuple(output / name for name in files), skipped)


def _plain(suffix: str) -> str:
    """Return a suffix as any file system takes it; what tells the names of arms apart is kept."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in _KEPT) else "_" for letter in suffix
    )


def _new_stem(stem: str, stems: set[str]) -> str:
    """Return a name that no figure has yet, numbered from 2 where one has, and note it."""
    numbered = (stem if number == 1 else f"{stem}_{number}" for number in itertools.count(1))
    # Some file systems do not tell capitals from small letters.
    found = next(name for name in numbered if name.casefold() not in stems)
    stems.add(found.casefold())
    return found
