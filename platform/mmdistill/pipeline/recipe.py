"""Recipes: named combinations of stages, terms and settings, kept as data in ``recipes/*.toml``."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from mmdistill.errors import UnknownNameError
from mmdistill.registry import unknown_name
from mmdistill.settings import Settings

FOLDER = Path(__file__).parent / "recipes"


class Recipe(Settings):
    """A recipe is data.

    Attributes:
        title: one line.
        source: paper, equation, code.
        provenance: published, control or inferred, in words.
        note: what differs from the source.
        inferred: each choice that the source does not state; it must never be told as the source's.
        run: edits of the run settings.
    """

    title: str
    source: str
    provenance: str
    note: str
    inferred: tuple[str, ...] = ()
    run: dict[str, Any] = Field(default_factory=dict)


@cache
def recipes() -> dict[str, Recipe]:
    """Return every recipe by the name of its file, in alphabetical order."""
    files = sorted(FOLDER.glob("*.toml"))
    return {file.stem: Recipe.model_validate(tomllib.loads(file.read_text("utf-8"))) for file in files}


def recipe(name: str, where: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        UnknownNameError: naming ``where`` the name was written and what it may have meant.
    """
    known = recipes()
    if name not in known:
        raise UnknownNameError([unknown_name("recipe", name, where, list(known))])
    return known[name]
