"""Parts by name; a new part is found by discovery, so nobody edits a list."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from mmdistill.errors import Problem, UnknownNameError

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """A mapping from names to parts of one kind, in alphabetical order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Return a decorator that files a part under ``name``."""

        def file(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"Two {self.kind}s are called {name!r}.")
            self._parts[name] = part
            return part

        return file

    def get_or_explain(self, name: str, where: str) -> Part:
        """Return the part called ``name``.

        Raises:
            UnknownNameError: naming ``where`` the name was written, what it may have meant, and what exists.
        """
        if name in self._parts:
            return self._parts[name]
        raise UnknownNameError([unknown_name(self.kind, name, where, list(self))])

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)


def unknown_name(kind: str, name: str, where: str, known: list[str]) -> Problem:
    """Return the problem that no ``kind`` is called ``name``, with the nearest known names."""
    near = difflib.get_close_matches(name, known, n=1)
    mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return Problem(where, f"no {kind} is called {name!r}", mend)


def import_submodules(package: str) -> None:
    """Import every module of ``package``, so that its parts register themselves."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
