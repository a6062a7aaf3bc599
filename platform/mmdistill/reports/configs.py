"""The settings of recorded runs, by dotted path."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.reports.evidence import Trial
from mmdistill.settings import flattened

SEARCHED = "searched"
# These tell the runs of an arm apart; a data set is known by its fingerprint, wherever it lies.
_OF_A_RUN = ("seed", "fold", "data.dataset")


def settings_by_arm(runs: Sequence[Trial], trials: pa.Table) -> dict[str, dict[str, Any]]:
    """Return what all runs of an arm have in common: all settings but seed, fold and place of the data.

    Args:
        runs: some of ``trials``.
        trials: the table, with the column ``config_json``.

    Returns:
        Settings by arm and path; what was searched has the value :data:`SEARCHED`.
    """
    one = {run["arm"]: run for run in runs}
    wanted = pa.array([run["trial_id"] for run in one.values()], pa.string())
    rows = trials.select(["arm", "config_json"]).filter(pc.is_in(trials["trial_id"], wanted)).to_pylist()
    return {row["arm"]: _settings(json.loads(row["config_json"]), one[row["arm"]]) for row in rows}


def _settings(config: Mapping[str, Any], run: Trial) -> dict[str, Any]:
    searched = [path for path, value in (run["parameters"] or {}).items() if value is not None]
    fixed = {path: value for path, value in flattened(config).items() if path not in _OF_A_RUN}
    return fixed | dict.fromkeys(searched, SEARCHED)
