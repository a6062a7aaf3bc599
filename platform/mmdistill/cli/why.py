"""`mmdistill why`: the runs behind a cell of the table."""

from collections.abc import Mapping
from pathlib import Path

from mmdistill.cli.printing import print_json, text_table
from mmdistill.cli.reading import readable
from mmdistill.reports.cells import score
from mmdistill.reports.why import Why, why


def show_why(study: Path, arm: str, metric: str | None, *, as_json: bool) -> int:
    """Print where the number of an arm comes from."""
    found = why(readable(study), arm, metric)
    if as_json:
        print_json(found)
    else:
        print("\n\n".join(_parts(found)))
    return 0


def _parts(found: Why) -> list[str]:
    where = {
        "test": "test rows",
        "validation": "validation rows, test not opened yet",
        "search": "validation rows, best search trial",
    }
    also = f" (also {', '.join(found.aliases)}: equal arms are one)" if found.aliases else ""
    title = (
        f"{found.study}: {found.arm}{also}, "
        f"{found.metric} {score(found.interval).text} on {where[found.basis]}, "
        f"n = {found.interval.n} {found.replicate} from {len(found.runs)} runs"
    )
    columns = ["trial_id", "pair_id", "fold", "seed_index", "seed", "value", "epoch", "lanes", "opening"]
    runs = [[getattr(run, name) for name in columns] for run in found.runs]
    header = [found.metric if name == "value" else name for name in columns]
    return [
        title,
        text_table(header, runs) if runs else "No run is behind it yet.",
        _exclusions(found),
        "Searched settings, from "
        + (f"the winner of {found.frozen} (frozen)" if found.frozen else "its own search")
        + (f", proposal {', '.join(map(str, found.proposals))}" if found.proposals else ""),
        *(f"{place}:\n{_lines(values)}" for place, values in found.parameters.items()),
        f"Settings that all its runs share:\n{_lines(found.settings)}",
        f"Made with:\n{_lines(found.provenance)}",
        f"Recompute every run above and compare:\n  {found.rerun}",
    ]


def _exclusions(found: Why) -> str:
    if not found.excluded and not found.missing:
        return "Left out: nothing; every pair that another arm finished is here."
    lines = [f"  {one.trial_id} ({one.phase}, {one.pair_id}): {one.reason}" for one in found.excluded]
    lines += [f"  pair {pair}" for pair in found.missing]
    return "\n".join(["Left out:", *lines])


def _lines(values: dict[str, object]) -> str:
    width = max(map(len, values), default=0)
    return "\n".join(f"  {name.ljust(width)}  {_value(value)}" for name, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "none"
    return "-" if value is None else str(value)
