"""Every exception that leaves this package on purpose.

MmdistillError
├── InputError            what the user gave is wrong; carries every problem found, exit code 2
│   ├── ConfigError       a setting is unknown, out of range, or contradicts another
│   │   └── UnknownNameError   a registry has nothing under that name
│   ├── DataError         files or arrays do not have the promised form
│   └── QueryError        an SQL statement is refused or fails
├── NumericsError         a loss or a transport plan was asked for something without a meaning
├── StudyError            a study folder cannot be used as asked, exit code 1
│   ├── LockedError       another driver is running the study
│   └── ConflictError     a name that may be written once already holds something else
└── Interrupted           the user ended a run; in :mod:`mmdistill.cluster.launch`

A figure that has nothing to show raises ``NothingToDrawError``, which becomes a reason or an InputError
before it leaves :mod:`mmdistill.reports.figures`.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing the user has to mend.

    Attributes:
        where: file and key, or file, column and row.
        rule: what must hold and the value that breaks it.
        mend: what to do.
    """

    where: str
    rule: str
    mend: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.where}: {self.rule}; {self.mend}"


class MmdistillError(Exception):
    """Root of the tree; the command line prints these without a traceback."""


class InputError(MmdistillError):
    """What the user gave is wrong; every problem found is reported at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(InputError):
    """A setting is unknown, out of range, or contradicts another."""


class UnknownNameError(ConfigError):
    """A registry has nothing under that name."""


class DataError(InputError):
    """Files or arrays do not have the promised form."""


class QueryError(InputError):
    """An SQL statement is refused or fails.

    Attributes:
        excerpt: the line of the statement and, below it, carets under the place; empty where it is unknown.
    """

    def __init__(self, problems: Sequence[Problem], excerpt: str = "") -> None:
        super().__init__(problems)
        self.excerpt = excerpt

    def __str__(self) -> str:
        """Return the problems and the excerpt."""
        return "\n".join([super().__str__(), *([self.excerpt] if self.excerpt else [])])


class NumericsError(MmdistillError):
    """A loss or a transport plan was asked for something without a meaning."""


class StudyError(MmdistillError):
    """A study folder cannot be used as asked."""


class LockedError(StudyError):
    """Another driver is running the study."""


class ConflictError(StudyError):
    """A name that may be written once already holds something else."""
