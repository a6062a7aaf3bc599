"""How long `mmdistill query` takes over 1e6 trials and 1e8 rows of curves, and what readers see meanwhile.

Ten studies of made rows are written as `compact` leaves them, then asked through the same path as any other;
about 1 GB in a temporary folder, removed at the end. Minutes.

    python tests/benchmarks/bench_query.py [--scale 1.0] [--json FILE]
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from mmdistill.records.finals import Final
from mmdistill.records.rows import TABLES, EpochRow, StudyRow, TrialRow, arrow_table
from mmdistill.records.schema import SCHEMA_VERSION, columns
from mmdistill.records.shelf import Shelf
from mmdistill.records.store import sha256_of
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import SNAPSHOTS, compact
from mmdistill.reports.query import query

STUDIES, TRIALS, EPOCHS, ARMS = 10, 100_000, 100, 10
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Name, goal in seconds, SQL.
QUESTIONS = (
    (
        "mean curve per study",
        2.0,
        "SELECT study, epoch, avg(value) AS value, count(*) AS n FROM epochs "
        "WHERE name = 'validation/log_loss' GROUP BY study, epoch ORDER BY study, epoch",
    ),
    (
        "one trial's curve",
        0.2,
        "SELECT epoch, value FROM epochs WHERE study = 'study-3' AND trial_id = 't0000042' ORDER BY epoch",
    ),
    (
        "best trial",
        3.0,
        "SELECT study, trial_id, arm, metrics.log_loss AS log_loss, parameters FROM trials "
        "ORDER BY metrics.log_loss, study, trial_id LIMIT 1",
    ),
)
# Sorted as the tables are: arm, phase, trial, name, epoch.
_EPOCHS = """
    SELECT format('t{{:07d}}', t) AS trial_id, format('arm-{{}}', t // {per_arm}) AS arm, 'search' AS phase,
           e AS epoch, 'validation/log_loss' AS name, 1 / (1 + e) + hash(t * 1000 + e) / 2e19 AS value
    FROM range({first}, {last}) AS a(t), range({epochs}) AS b(e) ORDER BY t, e
"""
_TRIALS = """
    SELECT format('t{{:07d}}', t) AS trial_id, format('arm-{{}}', t // {per_arm}) AS arm, 'search' AS phase,
           t % {per_arm} AS number, hash(t) >> 1 AS seed, 0 AS fold, 'p' AS pair_id, 'complete' AS status,
           'validation' AS split, {{'accuracy': hash(t) / 2e19, 'log_loss': hash(t + 1) / 2e19}} AS metrics,
           {{'lr': hash(t + 2) / 2e19, 'width': t % 64}} AS parameters, '{{}}' AS config_json
    FROM range({first}, {last}) AS a(t) ORDER BY t
"""


# One run of which only the names differ.
_TRIAL: dict[str, Any] = {
    "order_id": "o",
    "arm": "a",
    "phase": "search",
    "seed": 1,
    "fold": 0,
    "pair_id": "p",
    "status": "complete",
    "split": "validation",
    "metrics": {"log_loss": 1.0},
    "parameters": {},
    "config_json": "{}",
    "run_digest": "0",
    "dataset": "d",
    "teachers": [],
    "selection": {},
    "cpu_s": 0.0,
    "stage_cpu_s": 0.0,
    "lanes": 1,
    "device": "cpu",
    "host": "here",
    "started_at": NOW,
    "ended_at": NOW,
}


def write_study(root: Path, trials: int) -> None:
    """Write a finished study of made rows: its record, a manifest, and compact files of two full tables."""
    row = StudyRow(
        name=root.name,
        created_at=NOW,
        dataset="made",
        task="classification",
        score="accuracy",
        baseline="arm-0",
        margin=0.005,
        contrasts_json="[]",
        arms_json="[]",
        trials=trials // ARMS,
        pairs=1,
        seed=1,
        package_version="0",
        python="3",
        torch="2",
        ray="2",
        data_fingerprint="0",
        command="",
        host="here",
        cpu_count=1,
        threads=1,
    )
    folder = StudyFolder.create(root, row, "", {})
    manifest = compact(folder)
    files = {file.table: file._asdict() for file in manifest.files}
    for table, select in (("epochs", _EPOCHS), ("trials", _TRIALS)):
        path = root / SNAPSHOTS / f"{table}-made.parquet"
        sql = select.format(first=0, last=trials, per_arm=max(1, trials // ARMS), epochs=EPOCHS)
        with duckdb.connect() as connection:
            connection.execute("SET memory_limit = '4GB'")
            # What the rows of the real table have beside these columns is null here.
            connection.register("empty", arrow_table(TABLES[table], []))
            rest = ", ".join(
                f'NULL::VARCHAR AS "{one.name}"' for one in columns(TABLES[table]) if one.name not in sql
            )
            wanted = f"SELECT *{', ' + rest if rest else ''} FROM ({sql})"
            connection.execute(f"COPY ({wanted}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
        rows = trials * (EPOCHS if table == "epochs" else 1)
        entry = {"table": table, "file": path.name, "rows": rows, "bytes": path.stat().st_size}
        files[table] = {**entry, "sha256": sha256_of(b"")}
    body = {"number": 2, "schema_version": SCHEMA_VERSION, "files": list(files.values())}
    Shelf(root / "manifest").put("2", {**body, "sources": manifest.sources})


def ask(root: Path) -> list[dict[str, object]]:
    """Return wall and CPU seconds of every question, the best of three, from an open process."""
    found = []
    for name, goal, sql in QUESTIONS:
        wall, cpu = [], []
        for _ in range(3):
            clocks = time.perf_counter(), time.process_time()
            rows = query(root, sql).num_rows
            wall.append(time.perf_counter() - clocks[0])
            cpu.append(time.process_time() - clocks[1])
        assert rows > 0
        found.append({"name": name, "wall_s": min(wall), "cpu_s": min(cpu), "goal_s": goal})
    return found


def read_during_compaction(root: Path, rounds: int) -> dict[str, float]:
    """Ask in a loop while a study grows and is compacted; every answer must be a whole state of it."""
    shutil.rmtree(root, ignore_errors=True)
    write_study(root, 10)
    folder = StudyFolder.open(root)
    ended, seconds, wrong = threading.Event(), [], []

    def read() -> None:
        sql = "SELECT (SELECT count(*) FROM trials) AS trials, (SELECT count(*) FROM epochs) AS epochs"
        last = 0
        while not ended.is_set():
            clock = time.perf_counter()
            (row,) = query(root, sql).to_pylist()
            seconds.append(time.perf_counter() - clock)
            if row["epochs"] != 5 * row["trials"] or row["trials"] < last:
                wrong.append(row)
            last = row["trials"]

    (root / "manifest" / "2.json").unlink()
    reader = threading.Thread(target=read)
    reader.start()
    for number in range(rounds):
        rows = [TrialRow(trial_id=f"t{number}.{k}", number=k, **_TRIAL) for k in range(4)]
        curves = [
            EpochRow(trial_id=row.trial_id, arm="a", phase="search", epoch=e, name="x", value=0.0)
            for row in rows
            for e in range(5)
        ]
        folder.put_final(Final(f"o{number}", "search", trials=rows, epochs=curves))
        compact(StudyFolder.open(root))
    ended.set()
    reader.join()
    return {"rounds": rounds, "answers": len(seconds), "wrong": len(wrong), "slowest_s": max(seconds)}


def main() -> int:
    """Print a Markdown table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 1e6 trials")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import mmdistill.reports.sources as sources

    with tempfile.TemporaryDirectory(prefix="mmdistill-query-") as place:
        folder, trials = Path(place), int(TRIALS * arguments.scale)
        reading = read_during_compaction(folder / "growing", 60)
        sources.IN_MEMORY_ROWS = 0
        in_place = read_during_compaction(folder / "growing", 60)
        shutil.rmtree(folder / "growing")
        clock = time.perf_counter()
        for number in range(STUDIES):
            write_study(folder / f"study-{number}", trials)
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        print(
            f"{STUDIES * trials:.0e} trials, {STUDIES * trials * EPOCHS:.0e} epochs, {size / 1e6:.0f} MB, ",
            end="",
        )
        print(f"written in {time.perf_counter() - clock:.0f} s\n")
        found = ask(folder)
    print("| question | wall s | CPU s | goal s |\n| --- | --: | --: | --: |")
    for row in found:
        print(f"| {row['name']} | {row['wall_s']:.2f} | {row['cpu_s']:.2f} | {row['goal_s']} |")
    print("\n| reader during compaction | compactions | answers | not whole | slowest s |")
    print("| --- | --: | --: | --: | --: |")
    for name, row in (("in memory", reading), ("in place", in_place)):
        print(f"| {name} | {row['rounds']} | {row['answers']} | {row['wrong']} | {row['slowest_s']:.2f} |")
    if arguments.json:
        result = {"questions": found, "compaction": {"in_memory": reading, "in_place": in_place}}
        arguments.json.write_text(json.dumps(result, indent=2))
    missed = [row for row in found if row["wall_s"] > row["goal_s"]]
    return int(bool(missed or reading["wrong"] or in_place["wrong"]))


if __name__ == "__main__":
    raise SystemExit(main())
