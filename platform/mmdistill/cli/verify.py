"""`mmdistill verify`: is everything a study left still what was written?"""

from collections.abc import Mapping
from pathlib import Path

from mmdistill.cli.printing import print_json
from mmdistill.cli.reading import readable
from mmdistill.records.audit import audit


def show_audit(study: Path, cache: Path | None, *, as_json: bool) -> int:
    """Print what was checked and every problem; return 1 if there is one."""
    found = audit(readable(study), readable(cache or study / "cache"))
    if as_json:
        print_json(found._asdict() | {"ok": not found.problems})
        return int(bool(found.problems))
    for problem in found.problems:
        print(problem)
    print(f"{_total(found.checked)} files checked: {_counts(found.checked)}")
    if found.leftovers:
        print(f"{_total(found.leftovers)} files of killed writers, harmless: {_counts(found.leftovers)}")
    print(f"{len(found.problems)} problem{'' if len(found.problems) == 1 else 's'}")
    return int(bool(found.problems))


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
