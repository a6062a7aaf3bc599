"""A study against the plain pattern: Tune, one TorchTrainer worker group per trial, teachers in every trial.

4 arms x 32 trials on digits_views. The plain pattern is priced on 3 trials per arm, the cost of starting Ray
taken off, and extrapolated to 32; its training code is ours with one lane, so the ratio is about the pattern.
A study goes on where the plain pattern ends: it trains its winners on other seeds, with new teachers, and
tests them. The ratio is about the same work, the search: that training is taken off our bill, everything else
stays on it, and the ratio with it is printed as well. CPU seconds of whole process trees, one thread per
process.

    python tests/benchmarks/bench_plain_pattern.py [--json FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from cpu_meter import CpuMeter

ARMS = ("student_only", "hinton", "pkdot", "mt_pkdot")
TRIALS, PRICED = 32, 3
GENERATION = 16
GOAL_RATIO, GOAL_OVERHEAD = 50.0, 0.30
QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.toml"


def study_edits(trials: int, generation: int) -> list[str]:
    """Return the edits that make the default study one of four arms that hardly confirms."""
    arms = ", ".join(f'{{name = "{arm}", recipe = "{arm}"}}' for arm in ARMS)
    size = [f"search.trials={trials}", f"search.startup={generation}", f"search.generation={generation}"]
    rest = ["search.top=1", "search.seeds=1", "confirm.pairs=1", "resources.lanes=64"]
    return ["name=bench", "designs=[]", "contrasts=[]", f"arms=[{arms}]", *size, *rest]


def price_of_study(root: Path, generation: int = GENERATION) -> dict[str, float]:
    """Return the CPU seconds of our study, of its training, and of the training for its search."""
    from mmdistill.records.study import StudyFolder
    from mmdistill.records.tables import latest

    meter = CpuMeter()
    program = str(Path(sys.executable).with_name("mmdistill"))
    command = [program, "run", str(QUICKSTART), "--output", str(root)]
    meter.run([*command, *study_edits(TRIALS, generation)], capture_output=True)
    tables = latest(StudyFolder.open(root))
    stages = [row for row in tables["stages"].to_pylist() if row["cpu_s"] is not None]
    trained = {row["stage_key"]: row["cpu_s"] for row in stages}
    searched = {row["stage_key"]: row["cpu_s"] for row in stages if "~search" in row["pair_id"]}
    return {
        "cpu_s": meter.cpu_s,
        "training_cpu_s": sum(trained.values()),
        "search_training_cpu_s": sum(searched.values()),
        "trials": sum(row["phase"] == "search" for row in tables["trials"].to_pylist()),
    }


def price_of_plain(root: Path) -> dict[str, float]:
    """Return the CPU seconds of one trial of the plain pattern, start of Ray taken off."""
    prices = {}
    for name, count in (("empty", 0), ("trials", PRICED)):
        meter = CpuMeter()
        meter.run([sys.executable, __file__, "--plain", str(root / name), str(count)], capture_output=True)
        prices[name] = meter.cpu_s
    each = (prices["trials"] - prices["empty"]) / (PRICED * len(ARMS))
    return {"start_cpu_s": prices["empty"], "trial_cpu_s": each}


def plain_pattern(root: Path, count: int) -> None:
    """Run ``count`` trials of every arm, each a worker group that trains its own teachers and its student."""
    from mmdistill.cluster.environment import local_cluster
    from mmdistill.studies.study import open_study

    with local_cluster():
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        study = open_study(QUICKSTART, study_edits(TRIALS, GENERATION))
        for arm in study.arms if count else ():
            space = {path: _tune_range(dimension) for path, dimension in arm.space.items()}
            fixed = {"run": arm.run.model_dump_json(), "root": str(root), "directory": str(Path.cwd())}
            tune.Tuner(
                tune.with_resources(_plain_trial, {"cpu": 0.1}),
                param_space={"space": space, **fixed},
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(seed=0),
                    metric="log_loss",
                    mode="min",
                    num_samples=count,
                    max_concurrent_trials=2,
                ),
                run_config=tune.RunConfig(name=arm.name, storage_path=str(root), verbose=0),
            ).fit()


def _tune_range(dimension: object) -> object:
    from ray import tune

    from mmdistill.settings import Choice, Range

    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.choice))
    assert isinstance(dimension, Range)
    if dimension.integer:
        draw = tune.lograndint if dimension.log else tune.randint
        return draw(int(dimension.low), int(dimension.high) + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)


def _plain_trial(config: dict) -> None:
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        _plain_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.9}),
        run_config=RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=config["root"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _plain_loop(config: dict) -> None:
    import ray.train
    import torch

    from mmdistill.pipeline.bench import Bench, Piece
    from mmdistill.pipeline.cache import StageCache
    from mmdistill.pipeline.fold import opened
    from mmdistill.pipeline.run import RunSettings
    from mmdistill.settings import edited
    from mmdistill.training.runtime import LocalRuntime

    os.chdir(config["directory"])
    torch.set_num_threads(1)
    run = RunSettings.model_validate(edited(json.loads(config["run"]), config["space"]))
    fold = opened(run.data, run.fold, with_test=False, device="cpu")
    with tempfile.TemporaryDirectory() as own:
        bench = Bench("plain", StageCache(Path(own)), fold, LocalRuntime())
        (student,) = bench.students([Piece(run, "plain")], bench.outputs([Piece(run, "plain")]))
    ray.train.report({"log_loss": student.facts["metrics"]["log_loss"]})


def main() -> int:
    """Print a Markdown table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain", nargs=2)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_pattern(Path(arguments.plain[0]), int(arguments.plain[1]))
        return 0
    clock = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        ours = price_of_study(Path(place) / "study")
        plain = price_of_plain(Path(place))
    whole = ours["cpu_s"] / ours["trials"]
    later = ours["training_cpu_s"] - ours["search_training_cpu_s"]
    each = whole - later / ours["trials"]
    found = {
        "ours": ours,
        "plain": plain,
        "ratio": plain["trial_cpu_s"] / each,
        "ratio_with_confirmation": plain["trial_cpu_s"] / whole,
        "overhead": ours["cpu_s"] / ours["training_cpu_s"] - 1,
        "wall_s": time.monotonic() - clock,
    }
    print("| what | measured | goal |\n|---|---|---|")
    print(f"| a trial of the plain pattern ({PRICED} per arm) | {plain['trial_cpu_s']:.1f} CPU-s | |")
    print(f"| a trial of ours ({ours['trials']:.0f} in a study) | {each:.2f} CPU-s | |")
    print(f"| the same, with validation and confirmation of the winners | {whole:.2f} CPU-s | |")
    print(f"| trials per CPU-second, ratio | {found['ratio']:.0f} x | {GOAL_RATIO:.0f} x |")
    print(f"| the same, with validation and confirmation | {found['ratio_with_confirmation']:.0f} x | |")
    print(f"| overhead over pure training | {found['overhead']:.0%} | {GOAL_OVERHEAD:.0%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return int(found["ratio"] < GOAL_RATIO or found["overhead"] > GOAL_OVERHEAD)


if __name__ == "__main__":
    raise SystemExit(main())
