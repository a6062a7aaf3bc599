"""What many trials cost beside their training: driver memory, time to resume, growth of the CPU time.

Tiny trials of generated data through Ray, one process tree per study.

    python tests/benchmarks/bench_scale.py [--json FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from cpu_meter import CpuMeter

SIZES = (200, 2000)
RESUMED = 1000
# The driver's imports and Ray's own buffers fill up first.
WARM_UP = 0.25
GOAL_GROWTH_KB, GOAL_RESUME_S, GOAL_RATIO = 10.0, 1.0, 11.0
PLANTED = Path(__file__).parents[2] / "search_spaces" / "planted_nothing.toml"


def begin(place: Path, trials: int):
    """Return the session of a tiny study with three arms and that many trials in all."""
    from mmdistill.cluster.proposals import propose
    from mmdistill.records.study import StudyFolder
    from mmdistill.studies.provenance import study_row
    from mmdistill.studies.session import Session
    from mmdistill.studies.study import open_study

    edits = [f"search.trials={trials // 3}", f"search.startup={min(100, trials // 3)}"]
    edits += ["search.generation=100", "search.sampler=random", "confirm.pairs=2", "resources.lanes=8"]
    edits += ["run.epochs=1", "run.teachers.epochs=1", "run.network.width=4", "run.batch_size=40"]
    edits += ["run.data.options.rows=[200, 40, 40]"]
    study = open_study(PLANTED, edits)
    text, place = PLANTED.read_text("utf-8"), place / "study"
    folder = StudyFolder.create(place, study_row(study, []), text, study.resolved())
    return Session(study, folder, propose)


def run(place: Path, trials: int) -> None:
    """Run a study on Ray and print the growth of the driver's memory in KB per trial."""
    from mmdistill.cluster.launch import launch

    sizes: list[int] = []
    session = begin(place, trials)
    launch(session, place / "cache", lambda _event: sizes.append(_private_kb()))
    sizes = sizes[int(len(sizes) * WARM_UP) :]
    # The most it ever held: what the last order frees again counts.
    print(json.dumps({"growth_kb": (max(sizes) - sizes[0]) / (trials * (1 - WARM_UP))}))


def resume(place: Path, trials: int) -> None:
    """Print the CPU seconds between imports and the first answer on a study that is finished."""
    from mmdistill.cluster.inline import run_inline
    from mmdistill.pipeline.cache import StageCache

    run_inline(begin(place, trials), StageCache(place / "cache"))
    clock = time.process_time()
    session = begin(place, trials)
    session.show_missing()
    assert session.is_finished
    print(json.dumps({"resume_s": time.process_time() - clock}))


def _private_kb() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main() -> int:
    """Print a Markdown table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--do", nargs=3)
    arguments = parser.parse_args()
    if arguments.do:
        what, place, trials = arguments.do
        {"run": run, "resume": resume}[what](Path(place), int(trials))
        return 0
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        for trials in SIZES:
            meter = CpuMeter()
            found |= _said(meter, "run", Path(root) / f"run{trials}", trials)
            found[f"cpu_s_{trials}"] = meter.cpu_s
        found |= _said(CpuMeter(), "resume", Path(root) / "resumed", RESUMED)
    found["ratio"] = found[f"cpu_s_{SIZES[1]}"] / found[f"cpu_s_{SIZES[0]}"]
    print("| what | measured | goal |\n|---|---|---|")
    growth = f"{found['growth_kb']:.1f} KB"
    print(f"| driver memory per trial, {SIZES[1]} trials | {growth} | {GOAL_GROWTH_KB:g} KB |")
    print(f"| resume of {RESUMED} trials, own work | {found['resume_s']:.2f} CPU-s | {GOAL_RESUME_S:g} s |")
    print(f"| CPU time of {SIZES[1]} trials over {SIZES[0]} | {found['ratio']:.1f} x | {GOAL_RATIO:g} x |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    missed = found["growth_kb"] > GOAL_GROWTH_KB or found["resume_s"] > GOAL_RESUME_S
    return int(missed or found["ratio"] > GOAL_RATIO)


def _said(meter: CpuMeter, what: str, place: Path, trials: int) -> dict[str, float]:
    done = meter.run([sys.executable, __file__, "--do", what, str(place), str(trials)], capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
