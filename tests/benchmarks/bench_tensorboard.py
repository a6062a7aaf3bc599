"""TensorBoard with many trials: what the tree costs to write, and how soon a browser shows it.

2,000 generated trials of 10 arms with 10 curves of 40 epochs each: once in the tree that a study keeps, which
shows 500 of them, and once in one with all. The browser's part is left out where there is none.
"""

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from mmdistill.cli.reading import MEANS_FIRST
from mmdistill.records.board import MOST_RUNS, Board
from mmdistill.records.finals import Final
from mmdistill.records.rows import EpochRow, StudyRow, TrialRow
from mmdistill.records.study import StudyFolder

ARMS, SEARCHED, CONFIRMED, EPOCHS, CURVES, LANES = 10, 180, 20, 40, 10, 10
GOAL_MS_PER_RUN, GOAL_OPEN_S = 20.0, 20.0
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SHOWN = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  const inside = node.shadowRoot ? [node.shadowRoot, ...node.childNodes] : [...node.childNodes];
  return inside.map(text).join(' ');
}
return text(document.body).includes(arguments[0]);
"""


def study(root: Path) -> StudyFolder:
    """Return a generated study of 2,000 trials."""
    data = {"folds": {"scheme": "official"}}
    run = {"data": data, "teachers": {"pool": ["joint"], "training": "frozen"}, "terms": {}}
    space = {"optimiser.learning_rate": {"low": 1e-4, "high": 1e-1}}
    names = [f"arm{n}" for n in range(ARMS)]
    planned = {"search": SEARCHED, "confirm": CONFIRMED}
    row = StudyRow(
        name="many", created_at=NOW, dataset="generated", task="classification", score="accuracy",
        baseline="arm0", margin=0.005, contrasts_json="[]", trials=SEARCHED, pairs=CONFIRMED, seed=0,
        arms_json=json.dumps([{"name": name, "planned": planned} for name in names]),
        package_version="0", python="3", torch="2", ray="2", data_fingerprint="", command="", host="",
        cpu_count=1, threads=1,
    )  # fmt: skip
    arms = {"arms": {name: {"run": run, "space": space} for name in names}, "order": names}
    folder = StudyFolder.create(root, row, "", arms)
    for name in names:
        for first in range(0, SEARCHED, LANES):
            folder.put_final(_order(name, "search", range(first, first + LANES)))
        for first in range(0, CONFIRMED, LANES):
            folder.put_final(_order(name, "confirm", range(first, first + LANES)))
    return folder


def _order(arm: str, phase: str, numbers: range) -> Final:
    order_id = f"{arm}-{phase}-{numbers.start}"
    draw, trials, epochs = random.Random(order_id), [], []
    for n in numbers:
        level = draw.random()
        trial_id = f"{arm}-{phase}-{n}"
        trials.append(
            TrialRow(
                trial_id=trial_id,
                order_id=order_id,
                arm=arm,
                phase=phase,
                seed=n,
                fold=0,
                pair_id=str(n),
                number=n if phase == "search" else None,
                seed_index=None if phase == "search" else n,
                status="complete",
                split="validation",
                epoch=EPOCHS - 1,
                metrics={"accuracy": level, "log_loss": 1 - level},
                parameters={"optimiser.learning_rate": level},
                config_json="{}",
                run_digest="",
                dataset="",
                teachers=[],
                selection={},
                cpu_s=1.0,
                stage_cpu_s=0.0,
                lanes=LANES,
                device="cpu",
                host="",
                started_at=NOW,
                ended_at=NOW,
            )
        )
        curves = ["validation/accuracy", "term/task", *(f"term/t{c}" for c in range(CURVES - 2))]
        epochs += [
            EpochRow(trial_id=trial_id, arm=arm, phase=phase, epoch=e, name=name, value=level / (e + 1))
            for name in curves
            for e in range(EPOCHS)
        ]
    return Final(order_id, phase, trials=trials, epochs=epochs)


def opened_s(tree: Path) -> dict[str, float]:
    """Return the seconds from the start of the server, and of the page, until it shows the arms."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1500,1000",
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tree), "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    clock = time.monotonic()
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], **quiet)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    address = f"http://127.0.0.1:{port}/"
    runs = sum(1 for _ in tree.rglob("*tfevents*"))
    found = {}
    try:
        _wait(lambda: _runs(address) == runs)
        found["served_s"] = time.monotonic() - clock
        for page, word in (
            ("custom_scalars", f"Matches ({ARMS})"),
            ("timeseries", "means/arm9"),
            ("hparams", "arm0/confirm"),
        ):
            driver.get("about:blank")
            clock = time.monotonic()
            driver.get(address + MEANS_FIRST.replace("custom_scalars", page))
            _wait(lambda word=word: driver.execute_script(SHOWN, word))
            found[f"{page}_s"] = time.monotonic() - clock
    finally:
        driver.quit()
        server.terminate()
        server.wait()
    return found


def _runs(address: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=30) as answer:
            return len(json.load(answer))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0


def _wait(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.2)


def main() -> int:
    """Print a Markdown table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = study(Path(root) / "study")
        for name, most in (("capped", MOST_RUNS), ("all", ARMS * (SEARCHED + CONFIRMED))):
            board, clock = Board(folder, Path(root) / name, most), time.process_time()
            board.catch_up()
            found[f"{name}_ms_per_run"] = 1000 * (time.process_time() - clock) / board.runs
            if shutil.which("chromium") and shutil.which("chromedriver"):
                found |= {f"{name}_{what}": value for what, value in opened_s(board.root).items()}
    print("| what | measured | goal |\n|---|---|---|")
    for name, value in found.items():
        goal = f"{GOAL_MS_PER_RUN:g}" if "ms_per" in name else f"{GOAL_OPEN_S:g}" if "capped" in name else "-"
        print(f"| {name} | {value:.1f} | {goal} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    slow = [value for name, value in found.items() if name.startswith("capped") and name.endswith("_s")]
    return int(found["capped_ms_per_run"] > GOAL_MS_PER_RUN or max(slow, default=0.0) > GOAL_OPEN_S)


if __name__ == "__main__":
    raise SystemExit(main())
