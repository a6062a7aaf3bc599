"""Whether studies may stand for each other: which settings of the arms they share differ."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mmdistill.reports.readings import Readings

_BUDGET = "search.trials"
# What makes scores on different data sets hard to set side by side; the rest goes with the data.
_SUPPLY = ("data.label_fraction", "epochs")
# Any more are counted.
_MOST = 3


def unlike(same: Sequence[Readings]) -> str | None:
    """Return why the scores of studies on the same data must not be averaged, and what to do.

    They may be if every arm that two of them read has the same settings in both: all but seed, fold and the
    values that were searched, and with the same number of search trials. They must share an arm, or nothing
    tells.
    """
    if len(same) < 2:
        return None
    names = ", ".join(study.study["name"] for study in same)
    if not set.intersection(*(set(study.arms) for study in same)):
        return f"its studies {names} share no arm; compare them apart"
    apart: dict[str, str] = {}
    for arm in _read_twice(same):
        apart = _differing(same, arm) | apart
    if not apart:
        return None
    told = [f"{path} ({values})" for path, values in apart.items()]
    rest = [f"and {len(told) - _MOST} more"] if len(told) > _MOST else []
    return f"its studies {names} differ in {', '.join(told[:_MOST] + rest)}; give one of them, or like ones"


def uneven(by_name: Mapping[str, Sequence[Readings]], arms: Sequence[str]) -> list[str]:
    """Return what to say where an arm has other labels or another length of training on each data set.

    Args:
        by_name: studies that are alike, by data set.
        arms: those that are compared.
    """
    told: dict[str, str] = {}
    for arm in arms:
        read = [(name, study) for name, same in by_name.items() for study in same if arm in study.arms]
        for path in _SUPPLY:
            values = {name: _value(study, arm, path) for name, study in read}
            if len(set(values.values())) > 1:
                told.setdefault(path, f"The data sets differ in {path} of {arm} ({_listed(values)})")
    return list(told.values())


def _read_twice(same: Sequence[Readings]) -> list[str]:
    frozen = {arm.name for study in same for arm in study.declared if arm.frozen}
    found = Counter(arm for study in same for arm in study.arms if arm not in frozen)
    return [arm for arm, count in found.items() if count > 1]


def _differing(same: Sequence[Readings], arm: str) -> dict[str, str]:
    """Return the value in each study that read the arm of every setting that is not the same in all."""
    read = [study for study in same if arm in study.arms]
    paths = [*_SUPPLY, *sorted({path for study in read for path in study.settings.get(arm, ())}), _BUDGET]
    found = {
        path: {study.study["name"]: _value(study, arm, path) for study in read}
        for path in dict.fromkeys(paths)
    }
    return {path: _listed(values) for path, values in found.items() if len(set(values.values())) > 1}


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _value(study: Readings, arm: str, path: str) -> str:
    if path == _BUDGET:
        return str(study.study["trials"])
    return str(study.settings.get(arm, {}).get(path, "none"))
