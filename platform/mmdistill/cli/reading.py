"""Commands that read a study; they load neither torch nor Ray."""

import os
import sys
from pathlib import Path

from mmdistill.cli.printing import print_json, say, text_table
from mmdistill.errors import InputError, Problem
from mmdistill.records.rows import PHASES
from mmdistill.records.study import StudyFolder
from mmdistill.reports.status import ArmStatus, Status, status

LONGEST_PATH = 200
# The newer pages of TensorBoard read their filter of runs before the hash, the older ones after it.
MEANS_FIRST = "?runFilter=%5Emeans&smoothing=0#custom_scalars&regexInput=%5Emeans&_smoothingWeight=0"


def readable(path: Path) -> Path:
    """Return a path the user gave, once the system accepts it as one."""
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        rule = getattr(error, "strerror", None) or str(error)
        shown = str(path) if len(str(path)) <= LONGEST_PATH else f"{str(path)[:LONGEST_PATH]}…"
        raise InputError([Problem(shown, rule.lower(), "give another path")]) from None
    return path


def show_status(study: Path, *, as_json: bool) -> int:
    """Print how far a study has come."""
    found = status(readable(study))
    if as_json:
        print_json(found)
    else:
        print(_status_text(found))
    return 0


def _status_text(found: Status) -> str:
    lines = [[arm.name, *(_counts(arm, phase) for phase in PHASES), f"{arm.done:.0%}"] for arm in found.arms]
    parts = [
        f"{found.study}: {found.done:.0%} done, {found.orders} orders on record, "
        f"{found.seconds:.0f} s from first start to last end, {found.cpu_s:.0f} CPU-s",
        text_table(["arm", *PHASES, "done"], lines),
    ]
    if found.open_attempts:
        parts.append("Without an end, so running or killed (a killed order is run again by `mmdistill run`):")
        parts += [
            f"  {attempt.order_id}, attempt {attempt.number}, process {attempt.pid} on {attempt.host}"
            for attempt in found.open_attempts
        ]
    return "\n".join(parts)


def _counts(arm: ArmStatus, phase: str) -> str:
    counts = dict(arm.counts.get(phase, {}))
    complete = counts.pop("complete", 0)
    return ", ".join([str(complete), *(f"{number} {state}" for state, number in sorted(counts.items()))])


def serve_tensorboard(study: Path, port: int) -> int:
    """Become the TensorBoard server of a study."""
    root = StudyFolder.open(readable(study)).root / "tensorboard"
    if not root.is_dir():
        mend = "write them with `mmdistill run`, or again with `mmdistill rebuild`"
        raise InputError([Problem(str(root), "this study has no curves yet", mend)])
    say(f"TensorBoard of {study}: http://127.0.0.1:{port}/{MEANS_FIRST} (Ctrl-C ends it)")
    arguments = ["--logdir", str(root), "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
    return 0
