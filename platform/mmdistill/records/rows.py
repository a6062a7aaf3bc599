"""The tables of a study: one frozen dataclass each; the Arrow schema is derived from it.

Every column is nullable in Arrow. Scientific identity never includes the columns in ``varying``: two runs of
one study agree in all others.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from mmdistill.records.schema import (
    SCHEMA_VERSION,
    Column,
    Row,
    arrow_table,
    columns,
    from_json,
    meaning,
    to_json,
    type_text,
)

PHASES = ("search", "validate", "confirm", "test")
"""Phases of a study, in the order in which an arm goes through them."""


@dataclass(frozen=True, kw_only=True)
class TrialRow(Row):
    """One run of one arm: a proposal of the search, a repetition, or its reading on the test split."""

    table = "trials"
    order = ("arm", "phase", "number", "seed_index", "fold", "trial_id", "split")
    varying = ("cpu_s", "stage_cpu_s", "lanes", "device", "host", "started_at", "ended_at")

    trial_id: Annotated[str, "key: digest of study, arm, phase, number or seed, fold"]
    order_id: Annotated[str, "the order that computed this row"]
    arm: Annotated[str, "alternative of the ablation"]
    phase: Annotated[str, "search | validate | confirm | test"]
    number: Annotated[int | None, "number of the proposal inside the arm, from 0"] = None
    seed_index: Annotated[int | None, "number of the repetition, from 0"] = None
    seed: Annotated[int, "seed of the run, derived from the study's seed and the pair"]
    fold: Annotated[int, "fold, from 0"]
    pair_id: Annotated[str, "equal for runs that may be compared: same data, fold, label rows and seed"]
    status: Annotated[str, "complete | pruned | diverged | failed"]
    split: Annotated[str, "split on which `metrics` were computed: validation | test"]
    epoch: Annotated[int | None, "epoch whose weights were kept, from 0"] = None
    stopped_epoch: Annotated[int | None, "epochs trained when a race stopped it; null if none did"] = None
    metrics: Annotated[dict[str, float], "value by metric; shares are 0 to 1, latencies in their name's unit"]
    parameters: Annotated[dict[str, Any], "searched values by dotted path; lists as JSON"]
    config_json: Annotated[str, "all settings of the run"]
    run_digest: Annotated[str, "identity of the settings, 16 hexadecimal digits"]
    cost_key: Annotated[str, "digest of what decides the cost of the student; equal shapes, equal key"] = ""
    dataset: Annotated[str, "name of the data set"]
    teachers: Annotated[list[str], "names of the teachers"]
    selection: Annotated[dict[str, float], "share of choices by teacher, 0 to 1"]
    note: Annotated[str | None, "stamp, e.g. `selection degenerate: equals fixed:joint`"] = None
    cpu_s: Annotated[float, "CPU seconds of this run alone, without shared stages"]
    stage_cpu_s: Annotated[float, "CPU seconds of the shared stages below it, full price"]
    lanes: Annotated[int, "runs that trained together, this one included"]
    error: Annotated[str | None, "term and step of a divergence, or what failed"] = None
    device: Annotated[str, "device that trained it, e.g. `cpu`"]
    host: Annotated[str, "machine that trained it"]
    started_at: Annotated[datetime, "start, UTC"]
    ended_at: Annotated[datetime, "end, UTC"]


@dataclass(frozen=True, kw_only=True)
class StageRow(Row):
    """One stage that an order used, trained or taken from the cache."""

    table = "stages"
    order = ("stage", "name", "seed", "fold", "stage_key", "order_id", "arm")
    varying = ("cache_hit", "reason", "cpu_s")

    stage_key: Annotated[str, "digest of all that decides the stage's result"]
    stage: Annotated[str, "teacher | alignment | teacher_outputs | student"]
    name: Annotated[str, "name of the network or set inside the stage"]
    seed: Annotated[int, "seed of the stage"]
    fold: Annotated[int, "fold, from 0"]
    pair_id: Annotated[str, "pair for which it was asked"]
    order_id: Annotated[str, "order that asked for it"]
    arm: Annotated[str | None, "arm that asked for it; null where several share the order"] = None
    cache_hit: Annotated[bool, "whether the cache had it"]
    reason: Annotated[str, "`hit`, or why the cache had it not"]
    cpu_s: Annotated[float | None, "CPU seconds to compute it; null if unknown"] = None
    cost_key: Annotated[str, "digest of what decides its cost; of a student in its trial's row"] = ""
    metrics: Annotated[dict[str, float], "value by metric of the stage"]
    upstream: Annotated[list[str], "keys of the stages it was computed from"]


@dataclass(frozen=True, kw_only=True)
class EpochRow(Row):
    """One value of one curve."""

    table = "epochs"
    order = ("arm", "phase", "trial_id", "name", "epoch")

    trial_id: Annotated[str, "key of the run"]
    arm: Annotated[str, "alternative of the ablation"]
    phase: Annotated[str, "search | validate | confirm | test"]
    epoch: Annotated[int, "epoch, from 0"]
    name: Annotated[str, "curve, e.g. `term/transport`, `validation/log_loss`, `selection/joint`"]
    value: Annotated[float, "value in the unit of the curve"]


@dataclass(frozen=True, kw_only=True)
class PredictionRow(Row):
    """What one run says about one row of data."""

    table = "predictions"
    order = ("arm", "fold", "seed_index", "trial_id", "row")

    trial_id: Annotated[str, "key of the run"]
    arm: Annotated[str, "alternative of the ablation"]
    pair_id: Annotated[str, "equal for runs that may be compared"]
    seed_index: Annotated[int, "number of the repetition, from 0"]
    fold: Annotated[int, "fold, from 0"]
    row: Annotated[str, "identity of the row in the data set"]
    unit: Annotated[str, "independent unit of the test: the row's group, or the row itself"]
    label: Annotated[float, "class index, or the target; NaN where there are several targets"]
    targets: Annotated[list[float], "regression: true targets; classification: empty"]
    outputs: Annotated[list[float], "class probabilities 0 to 1, or predicted targets"]


@dataclass(frozen=True, kw_only=True)
class MatrixRow(Row):
    """One line of a square matrix between the same few training rows, sorted by label.

    Of every confirmed run: cosine similarities between the features of the rows, the student's own and those
    of what it learns from, and the transport plan between the two where a term has one.
    """

    table = "matrices"
    order = ("arm", "fold", "seed_index", "trial_id", "matrix", "place")

    trial_id: Annotated[str, "key of the run"]
    arm: Annotated[str, "alternative of the ablation"]
    pair_id: Annotated[str, "equal for runs that may be compared"]
    seed_index: Annotated[int, "number of the repetition, from 0"]
    fold: Annotated[int, "fold, from 0"]
    matrix: Annotated[str, "student | teacher: cosine similarities; plan: transport"]
    place: Annotated[int, "line of the matrix, from 0; column n stands for the same row as line n"]
    row: Annotated[str, "identity of the row in the data set"]
    label: Annotated[float, "class index, or the first target; NaN without one"]
    values: Annotated[
        list[float],
        "one per column; similarities -1 to 1, rounded to 0.001; plan: share of the mass of the teacher's "
        "line that goes to the student's column, rounded to 0.0001",
    ]


@dataclass(frozen=True, kw_only=True)
class AttemptRow(Row):
    """One attempt at an order; no end means that it was killed or is running."""

    table = "attempts"
    order = ("order_id", "attempt")
    varying = (
        "started_at",
        "ended_at",
        "outcome",
        "cpu_s",
        "host",
        "pid",
        "error",
        "package_version",
        "git_commit",
        "git_dirty",
        "python",
        "torch",
    )

    order_id: Annotated[str, "the order"]
    attempt: Annotated[int, "number of the attempt, from 1"]
    started_at: Annotated[datetime, "start, UTC"]
    ended_at: Annotated[datetime | None, "end, UTC"] = None
    outcome: Annotated[str | None, "complete | failed | storage | hung"] = None
    cpu_s: Annotated[float | None, "CPU seconds of the process meanwhile; null without an end"] = None
    host: Annotated[str, "machine of the attempt"]
    pid: Annotated[int, "process of the attempt"]
    error: Annotated[str | None, "what failed"] = None
    package_version: Annotated[str | None, "version of mmdistill there; null before version 2"] = None
    git_commit: Annotated[str | None, "commit of the code there, where known"] = None
    git_dirty: Annotated[bool | None, "whether the code there differed from its commit"] = None
    python: Annotated[str | None, "version of Python there; null before version 2"] = None
    torch: Annotated[str | None, "version of torch there; null before version 2"] = None


@dataclass(frozen=True, kw_only=True)
class StudyRow(Row):
    """The study itself: what was asked, with what, where; one row per revision, the last one counts."""

    table = "studies"
    order = ("name", "revision")
    # Which code ran is on record; what it decides is in the versions of the stages, part of the identity.
    varying = (
        "created_at",
        "command",
        "host",
        "cpu_count",
        "package_version",
        "ray",
        "git_commit",
        "git_dirty",
        "constraints_hash",
        "versions_json",
        "hardware_json",
        "environment_json",
    )

    name: Annotated[str, "name of the study"]
    created_at: Annotated[datetime, "first start, UTC"]
    dataset: Annotated[str, "name of the data set"]
    task: Annotated[str, "classification | regression"]
    score: Annotated[str, "metric that is reported, e.g. `accuracy` or `ccc`"]
    baseline: Annotated[str, "arm that all others are compared with"]
    reference: Annotated[str | None, "second arm of comparison"] = None
    margin: Annotated[float, "largest difference that counts as none, in units of the score"]
    contrasts_json: Annotated[str, "planned contrasts: list of question, arm, against, revision"]
    arms_json: Annotated[
        str,
        "arms in the order of the study file: name, recipe, dimensions, digest, note, baseline (arm it is "
        "compared with), frozen (arm whose winner's settings it takes), base, change, folds (their scheme), "
        "tuning, revision, planned (runs by phase), privileged (modalities its teachers see), teachers (its "
        "networks), alike (digest of all other settings, by which of the two is left out), prices (stated "
        "cost of each privileged modality, > 0), price_unit",
    ]
    trials: Annotated[int, "proposals per arm"]
    tuning: Annotated[
        str, "where winners were searched: nested | fixed_holdout | shared; mixed: see the arms"
    ] = "nested"
    revision: Annotated[int, "number of the study's version, from 1; an extension makes the next"] = 1
    pairs: Annotated[int, "confirmation pairs of an arm; the most where arms differ in their folds"]
    seed: Annotated[int, "seed of the study"]
    package_version: Annotated[str, "version of mmdistill"]
    python: Annotated[str, "version of Python"]
    torch: Annotated[str, "version of torch"]
    ray: Annotated[str, "version of Ray"]
    git_commit: Annotated[str | None, "commit of the code, where known"] = None
    git_dirty: Annotated[bool | None, "whether the code differed from its commit"] = None
    constraints_hash: Annotated[str | None, "digest of the pinned versions"] = None
    versions_json: Annotated[
        str | None, "versions of the libraries that decide results, by name; null before version 2"
    ] = None
    hardware_json: Annotated[
        str | None,
        "machine of the first start: cpu (model), cores, memory_bytes, gpus (models); null before version 2",
    ] = None
    environment_json: Annotated[
        str | None,
        "environment variables that decide threads, devices and places, by name; secrets are ***; null "
        "before version 2",
    ] = None
    data_fingerprint: Annotated[str, "digest of the data set's content"]
    command: Annotated[str, "command line of the first start"]
    host: Annotated[str, "machine of the first start"]
    cpu_count: Annotated[int, "CPU cores of that machine"]
    threads: Annotated[int, "threads per order; part of what decides the last bits"]


@dataclass(frozen=True, kw_only=True)
class OpeningRow(Row):
    """One look at the test split, recorded before it happens."""

    table = "test_openings"
    order = ("opening", "arm", "fold", "seed_index", "trial_id")
    varying = ("opened_at",)

    opening: Annotated[int, "number of the opening, from 1"]
    opened_at: Annotated[datetime, "time of the record, UTC"]
    arm: Annotated[str, "alternative of the ablation"]
    fold: Annotated[int, "fold, from 0"]
    seed_index: Annotated[int, "number of the repetition, from 0"]
    trial_id: Annotated[str, "key of the run that is read on the test split"]
    selection: Annotated[str, "file name of the frozen selection record"]
    order_id: Annotated[str, "order that reads the test split"]


TABLES: dict[str, type[Row]] = {
    kind.table: kind
    for kind in (TrialRow, StageRow, EpochRow, PredictionRow, MatrixRow, AttemptRow, StudyRow, OpeningRow)
}


def schema_text() -> str:
    """Return every column of every table with its type and meaning, as Markdown."""
    head = [
        f"# The tables of a study, schema version {SCHEMA_VERSION}",
        "",
        "`mmdistill schema` prints this; `mmdistill schema > dashboards/SCHEMA.md` writes it anew. The files",
        "`compact/TABLE.parquet` say the same in their metadata: `mmdistill.meaning` and",
        "`mmdistill.schema_version` of the table, `meaning` of a column. In `mmdistill query` every table",
        "begins with one more column, `study`: the study's folder, below the folder that was asked about.",
        "",
        "Null means not measured, NaN is a value. Every column is nullable in the files; one with `or null`",
        "may be null in a whole record. A column marked * may differ between two runs of one study.",
    ]
    return "\n".join([*head, *(line for kind in TABLES.values() for line in _table_lines(kind))]) + "\n"


def _table_lines(kind: type[Row]) -> list[str]:
    lines = [
        f"- `{one.name}`{'*' * (one.name in kind.varying)} ({_type(one)}): {one.meaning}"
        for one in columns(kind)
    ]
    return ["", f"## {kind.table}", "", meaning(kind), f"Sorted by {', '.join(kind.order)}.", "", *lines]


def _type(column: Column) -> str:
    return f"{type_text(column)} or null" if column.optional else type_text(column)


__all__ = [
    "TABLES",
    "AttemptRow",
    "EpochRow",
    "MatrixRow",
    "OpeningRow",
    "PredictionRow",
    "Row",
    "StageRow",
    "StudyRow",
    "TrialRow",
    "arrow_table",
    "from_json",
    "schema_text",
    "to_json",
]
