"""The columns a table may have: a title, a cell per arm, and the exact values behind it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from mmdistill.reports.ablation import Ablation, ArmSummary
from mmdistill.reports.cells import NOTHING, Cell, cpu_seconds, difference, number, score, verdict
from mmdistill.reports.evidence import Scheme

CellOf = Callable[[ArmSummary, Ablation], Cell]


class Column(NamedTuple):
    """A column.

    Attributes:
        title: of the study's table.
        cell: of an arm.
        keys: the columns of the CSV with the exact values; ``{score}`` stands for the score's name.
        note: what its title means, where that is no plain word.
    """

    title: Callable[[Ablation], str]
    cell: CellOf
    keys: tuple[str, ...]
    note: str = ""


def schemes(ablation: Ablation) -> list[Scheme]:
    """Return what counts as one replicate in any arm, the baseline's first."""
    return list(dict.fromkeys([ablation.scheme, *(arm.scheme for arm in ablation.arms)]))


def baselines(ablation: Ablation) -> dict[str, list[str]]:
    """Return the arms compared with each baseline."""
    found: dict[str, list[str]] = {}
    for arm in ablation.arms:
        if arm.declared.baseline:
            found.setdefault(arm.declared.baseline, []).append(arm.name)
    return found


def baseline_name(ablation: Ablation) -> str:
    """Return the baseline, in one word where arms have several."""
    return "baseline" if len(baselines(ablation)) > 1 else ablation.baseline


def brackets(ablation: Ablation) -> str:
    """Return what the intervals of a difference are over."""
    kinds, units = ({getattr(s, key) for s in schemes(ablation)} for key in ("replicate", "unit"))
    kind = ablation.scheme.replicate if len(kinds) == 1 else "replicates"
    return f"[{kind}] [x {ablation.scheme.unit if len(units) == 1 else 'units'}]"


def shortened(names: Sequence[str], limit: int) -> dict[str, str]:
    """Return the long ones of some texts without their middle; all whole if two would look the same."""
    short = {name: name if len(name) <= limit else _without_middle(name, limit) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _without_middle(name: str, limit: int) -> str:
    return f"{name[: limit // 2 - 1]}…{name[-(limit - limit // 2) :]}"


def _n(arm: ArmSummary, ablation: Ablation) -> Cell:
    several = len({scheme.replicate for scheme in schemes(ablation)}) > 1
    return Cell(f"{arm.score.n} {arm.scheme.replicate}" if several else str(arm.score.n))


def _budget(arm: ArmSummary, _: Ablation) -> Cell:
    budget = arm.budget
    return Cell(f"{budget.trials}/{budget.dimensions}/{cpu_seconds(budget.cpu_s)}")


def _p(arm: ArmSummary, _: Ablation) -> Cell:
    claim = arm.against_baseline
    if claim is None or claim.verdict is None:
        return Cell(NOTHING)
    return Cell(f"{claim.adjusted_p:.2g}", is_number="e" not in f"{claim.adjusted_p:.2g}")


def _titled(title: str) -> Callable[[Ablation], str]:
    return lambda _: title


def _text(value: object) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(NOTHING if value in (None, "") else str(value))


def _words(title: str, value: Callable[[ArmSummary], object], *keys: str, note: str = "") -> Column:
    return Column(_titled(title), lambda arm, _: _text(value(arm)), keys, note)


def _metric(title: str, field: str, note: str) -> Column:
    return Column(_titled(title), lambda arm, _: number(getattr(arm, field)), (field,), note)


def _minus(field: str, title: Callable[[Ablation], str], *, crossed: bool) -> Column:
    kinds = ("seeds", "crossed")
    ends = [f"minus_{field}_{kind}_{end}" for kind in kinds for end in ("low", "high")]
    return Column(
        title,
        partial(_difference_to, field=field, crossed=crossed),
        (*([field] if field != "reference" else []), f"minus_{field}", *ends),
    )


def _difference_to(arm: ArmSummary, _: Ablation, *, field: str, crossed: bool) -> Cell:
    return difference(getattr(arm, f"against_{field}"), crossed=crossed)


CPU = "CPU seconds of search, validation and confirmation with the teachers used"
COLUMNS: dict[str, Column] = {
    "n": Column(_titled("n"), _n, ("replicate", "n")),
    "score": Column(
        lambda ablation: ablation.score_name,
        lambda arm, _: score(arm.score),
        ("{score}", "{score}_low", "{score}_high"),
    ),
    "minus_baseline": _minus(
        "baseline",
        lambda ablation: f"minus {baseline_name(ablation)} {brackets(ablation)}",
        crossed=True,
    ),
    "minus_reference": _minus("reference", lambda a: f"minus {a.reference or 'reference'}", crossed=False),
    "minus_base": _minus("base", lambda a: f"minus base {brackets(a)}", crossed=True),
    "p": Column(_titled("adjusted p"), _p, ("minus_baseline_p", "minus_baseline_adjusted_p")),
    "log_loss": _metric("log-loss", "log_loss", "in nats, lower is better"),
    "calibration_error": _metric(
        "cal. err", "calibration_error", "adaptive calibration error of the raw probabilities, 0 is best"
    ),
    "worst_class": _metric("worst class", "worst_class", "accuracy of the class with the lowest"),
    "budget": Column(
        _titled("trials/dims/CPU-s"),
        _budget,
        ("trials", "dimensions", "cpu_s"),
        f"search trials, searched settings, and {CPU}",
    ),
    "trials": _words("trials", lambda arm: arm.budget.trials, "trials"),
    "dimensions": _words("dims", lambda arm: arm.budget.dimensions, "dimensions", note="searched settings"),
    "cpu_s": _words("CPU-s", lambda arm: cpu_seconds(arm.budget.cpu_s), "cpu_s", note=CPU),
    "pruned": _words("pruned", lambda arm: arm.budget.pruned, "pruned"),
    "diverged": _words("diverged", lambda arm: arm.budget.diverged, "diverged"),
    "failed": _words("failed", lambda arm: arm.budget.failed, "failed"),
    "still_improving": _words("improving", lambda arm: arm.budget.still_improving, "still_improving"),
    "recipe": _words("recipe", lambda arm: arm.declared.recipe, "recipe"),
    "base": _words("of", lambda arm: arm.declared.base, "base"),
    "change": _words("change", lambda arm: arm.declared.change, "change"),
    "frozen": _words("settings of", lambda arm: arm.declared.frozen, "frozen"),
    "folds": _words("folds", lambda arm: arm.declared.folds, "folds"),
    "tuning": _words("tuning", lambda arm: arm.declared.tuning, "tuning"),
    "opening": _words("opening", lambda arm: arm.opening, "opening"),
    "missing": _words("missing pairs", lambda arm: "; ".join(arm.missing), "missing"),
    "notes": _words("notes", lambda arm: "; ".join(arm.notes), "notes"),
    "verdict": Column(
        _titled("verdict"),
        lambda arm, ablation: Cell(verdict(arm, ablation.baseline)),
        ("verdict", "planned"),
    ),
}
"""By the name that ``--columns`` knows; the arm's name always stands first."""

_MOST_TARGETS = 4
_METRICS = ("log_loss", "calibration_error", "worst_class")


def targets_of(ablation: Ablation) -> list[str]:
    """Return the targets over which the score is a mean; none where it is of one thing."""
    return list(dict.fromkeys(one.target for arm in ablation.arms for one in arm.targets))


def columns_of(ablation: Ablation) -> dict[str, Column]:
    """Return ``COLUMNS`` and, of a regression with several targets, one per target: ``target_NAME``."""
    return COLUMNS | {f"target_{target}": _target(target) for target in targets_of(ablation)}


def _target(target: str) -> Column:
    def cell(arm: ArmSummary, _: Ablation) -> Cell:
        return number(next((one.mean for one in arm.targets if one.target == target), None))

    return Column(lambda ablation: f"{ablation.score_name} {target}", cell, (f"target_{target}",))


LEFT = {"recipe", "base", "change", "frozen", "folds", "tuning", "missing", "notes", "verdict"}
"""Columns of text, set flush left."""


def column_notes(ablation: Ablation, names: Sequence[str]) -> list[str]:
    """Return what the titles of some columns mean, in one note; nothing where all are plain words."""
    shown = [columns_of(ablation)[name] for name in names]
    found = [f"{column.title(ablation)}: {column.note}" for column in shown if column.note]
    return ["; ".join(found)] if found else []


def target_notes(ablation: Ablation) -> list[str]:
    """Return over what the score is a mean; nothing where it is of one thing."""
    if not (targets := targets_of(ablation)):
        return []
    asked = "; `--columns 'target_*'` shows each" if len(targets) > _MOST_TARGETS else ""
    return [f"{ablation.score_name} is the mean over the targets {', '.join(targets)}{asked}"]


def _measured(ablation: Ablation) -> list[str]:
    """Return the metrics beside the score that any arm has: a regression has no log-loss."""
    return [name for name in _METRICS if any(getattr(arm, name) is not None for arm in ablation.arms)]


def usual(ablation: Ablation) -> list[str]:
    """Return the columns of the table that nobody chose columns for."""
    targets = [f"target_{target}" for target in targets_of(ablation)]
    names = ["n", "score", *(targets if len(targets) <= _MOST_TARGETS else [])]
    names += ["minus_baseline", "minus_reference", *_measured(ablation), "budget", "verdict"]
    # Where every arm's baseline is the reference, one column says it.
    is_told = ablation.reference is None or {*baselines(ablation)} <= {ablation.reference}
    return [name for name in names if name != "minus_reference" or not is_told]
