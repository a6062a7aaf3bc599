"""The parts of a run that can be taken out, and the edits that do so."""

from collections.abc import Collection, Sequence
from typing import Any

from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import unknown_name

ALIGNMENT, SELECTION, TEACHER, HALLUCINATOR = "alignment", "selection", "teacher.", "hallucinator"


def parts_of(run: RunSettings) -> list[str]:
    """Return the names of a run's parts.

    Active terms; ``hallucinator``; where several networks teach also ``alignment``, ``selection`` (a teacher
    or a mixture per row) and ``teacher.<network>``.
    """
    networks = run.networks() if run.active_terms() else {}
    found = list(run.active_terms()) + ([HALLUCINATOR] if run.hallucinator.kind != "none" else [])
    if len(networks) > 1:
        found += [ALIGNMENT] if run.alignment.kind != "none" else []
        found += [SELECTION] if run.selection.policy in {"sample", "weighted"} else []
        found += [f"{TEACHER}{name}" for name in networks]
    return found


def checked_parts(asked: Sequence[str], run: RunSettings) -> list[str]:
    """Return names of parts as given.

    Raises:
        ValueError: if the run has no such part.
    """
    known = parts_of(run)
    for name in asked:
        if name not in known:
            problem = unknown_name("part", name, "", known)
            raise ValueError(f"{problem.rule}; {problem.mend}")
    return list(asked)


def without(run: RunSettings, removed: Collection[str]) -> dict[str, Any]:
    """Return the edits that take some parts out of a run.

    Without ``selection`` a whole batch learns from one teacher, instead of each row from its own.
    """
    edits: dict[str, Any] = {f"terms.{name}.weight": 0.0 for name in run.active_terms() if name in removed}
    if ALIGNMENT in removed:
        edits["alignment.kind"] = "none"
    if SELECTION in removed:
        edits["selection.policy"] = "batch"
    if HALLUCINATOR in removed:
        edits["hallucinator.kind"] = "none"
    return edits | teachers_left(run, [n for n in run.networks() if f"{TEACHER}{n}" not in removed])


def teachers_left(run: RunSettings, kept: Sequence[str]) -> dict[str, Any]:
    """Return the edits after which only some networks teach; none where these are all."""
    return {} if list(kept) == list(run.networks()) else {"teachers.pool": list(kept)}
