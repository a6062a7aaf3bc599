"""The named queries of ``dashboards/queries``: ``@best_per_arm`` stands for ``best_per_arm.sql``."""

import difflib

from mmdistill.errors import Problem, QueryError
from mmdistill.reports.dashboards import dashboard

MARK = "@"


def named_queries() -> dict[str, str]:
    """Return by name, sorted, what each query asks: the comment it begins with."""
    paths = sorted(dashboard("queries").glob("*.sql"))
    return {path.stem: _question(path.read_text("utf-8")) for path in paths}


def _question(sql: str) -> str:
    comments = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        comments.append(line.removeprefix("--").strip())
    return " ".join(comments)


def resolved(sql: str) -> str:
    """Return the SQL that ``@name`` stands for; what does not begin so as it is.

    Raises:
        QueryError: if there is no query of that name.
    """
    asked = sql.strip()
    if not asked.startswith(MARK):
        return sql
    name, known = asked.removeprefix(MARK), list(named_queries())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        there = ", ".join(f"{MARK}{one}" for one in (near or known))
        mend = f"did you mean {there}?" if near else f"there are {there}"
        raise QueryError([Problem(asked, "no named query is called so", mend)])
    return dashboard("queries", f"{name}.sql").read_text("utf-8")
