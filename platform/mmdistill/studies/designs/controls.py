"""The controls of a method: what remains of it where what it claims cannot be at work."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import unknown_name
from mmdistill.studies.designs.base import DESIGNS, Base, Design
from mmdistill.studies.file import ArmEntry
from mmdistill.terms import TERMS


class Control(NamedTuple):
    """A control of some run: its edits and what it is, or why there is none."""

    edits: dict[str, Any]
    change: str
    refused: str | None = None


def _refused(why: str) -> Control:
    return Control({}, "", why)


def same_modality(run: RunSettings) -> Control:
    """Return the method with a teacher that sees what the student sees: soft labels without modalities."""
    if not run.active_terms():
        return _refused("it has no teacher")
    if all(set(seen) <= set(run.data.student) for seen in run.networks().values()):
        return _refused("its teachers see the student's modalities only")
    edits: dict[str, Any] = {"teachers.pool": ["student"], "alignment.kind": "none"}
    if run.hallucinates():
        edits["hallucinator.kind"] = "none"
    # There is nothing an auxiliary network, which sees privileged modalities alone, could see.
    gone = [name for name in run.active_terms() if "auxiliary" in TERMS[name].needs]
    if len(gone) == len(run.active_terms()):
        return _refused("all its terms need a network on privileged modalities")
    edits |= {f"terms.{name}.weight": 0.0 for name in gone}
    gone += ["hallucinator"] if run.hallucinates() else []
    less = f", without {', '.join(gone)}" if gone else ""
    return Control(edits, f"one teacher, which sees the student's modalities{less}")


def permuted_teacher(run: RunSettings) -> Control:
    """Return the method with teachers that learned permuted labels: regularisation without knowledge."""
    if not run.active_terms():
        return _refused("it has no teacher")
    if run.teachers.labels == "permuted":
        return _refused("its teachers learn permuted labels already")
    return Control({"teachers.labels": "permuted"}, "teachers that learned permuted labels")


def identity_coupling(run: RunSettings) -> Control:
    """Return the method with every sample paired with itself: structure without transport."""
    transport = run.active_terms().get("transport")
    if transport is None:
        return _refused("it has no transport term")
    if getattr(transport, "coupling", None) == "identity":
        return _refused("its coupling is the identity already")
    return Control({"terms.transport.coupling": "identity"}, "every sample paired with itself")


def doubled_information(run: RunSettings) -> Control:
    """Return the method with I(T;S) twice in place of the conditional entropy.

    I(T;S) - H(T|S) = H(T) - 2 H(T|S): leaving the second term out also halves what is said of the first.
    The doubled weight is fixed, not searched.
    """
    information = run.active_terms().get("mutual_information")
    if information is None or "conditional_entropy" not in run.active_terms():
        return _refused("it has not both terms, mutual_information and conditional_entropy")
    doubled = 2 * information.weight
    edits = {"terms.mutual_information.weight": doubled, "terms.conditional_entropy.weight": 0.0}
    return Control(edits, f"I(T;S) of weight {doubled:g} in place of H(T|S)")


def supervised(run: RunSettings) -> Control:
    """Return the student alone on the same rows with all their labels: labels in place of teachers."""
    if run.data.label_fraction == 1:
        return _refused("its training rows have all their labels")
    weights: dict[str, Any] = {f"terms.{name}.weight": 0.0 for name in run.active_terms()}
    weights |= {"hallucinator.kind": "none"} if run.hallucinates() else {}
    return Control(weights | {"data.label_fraction": 1.0}, "the student alone with all labels")


CONTROLS: dict[str, Callable[[RunSettings], Control]] = {
    "same_modality": same_modality,
    "permuted_teacher": permuted_teacher,
    "identity_coupling": identity_coupling,
    "doubled_information": doubled_information,
    "supervised": supervised,
}


@DESIGNS.register("controls")
class Controls(Design):
    """Add the controls of the base.

    Attributes:
        which: names of controls; true means all that apply.
    """

    kind: Literal["controls"] = "controls"
    which: Literal[True] | tuple[str, ...] = True

    def arms(self, base: Base) -> list[ArmEntry]:
        """Return one arm per control, named ``base.control``."""
        asked = () if self.which is True else self.which
        problems = [problem for name in asked for problem in _problems(name, base)]
        if problems:
            raise ValueError("; ".join(problems))
        found = {name: CONTROLS[name](base.run) for name in asked or CONTROLS}
        reasons = [f"{name}: {control.refused}" for name, control in found.items() if control.refused]
        if len(reasons) == len(found):
            raise ValueError(f"no control applies to {base.entry.name!r} ({'; '.join(reasons)})")
        return [
            base.arm(f".{name}", control.edits, control.change)
            for name, control in found.items()
            if not control.refused
        ]


def _problems(name: str, base: Base) -> Iterator[str]:
    if name not in CONTROLS:
        problem = unknown_name("control", name, "", list(CONTROLS))
        yield f"{problem.rule} ({problem.mend})"
        return
    refused = CONTROLS[name](base.run).refused
    if refused:
        yield f"the control {name!r} does not apply to {base.entry.name!r}: {refused}"
