"""Fails one small study at every point of `mmdistill.faults`, goes on with it, and compares what is left.

Run as `python crash_sweep.py FOLDER RESULT.json EVERY`: every injection has a process of its own, forked from
this one, which has everything loaded. EVERY = n makes every n-th injection only. Needs no Ray.
"""

import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch

from mmdistill import faults
from mmdistill.cluster.inline import run_inline
from mmdistill.cluster.proposals import propose
from mmdistill.errors import MmdistillError
from mmdistill.pipeline.cache import StageCache
from mmdistill.records.audit import audit
from mmdistill.records.lease import Lease
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, content_hash, latest, tables
from mmdistill.studies.file import StudyFile
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import Session
from mmdistill.studies.study import assemble

TINY = {
    "name": "tiny",
    "run": {
        "epochs": 2,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [16, 8, 8]},
            "student": ["face"],
            "privileged": ["audio"],
        },
        "teachers": {"epochs": 1, "out_of_fold": 2},
    },
    "arms": [{"name": "student_only", "recipe": "student_only"}, {"name": "hinton", "recipe": "hinton"}],
    "search": {"trials": 1, "startup": 1, "top": 1, "seeds": 1},
    "confirm": {"pairs": 2},
}
# One more planned contrast from sitting to sitting, so that the study has three revisions.
CONTRASTS = [
    {"question": "Does it help?", "arm": "hinton", "against": "student_only"},
    {"question": "Does it harm?", "arm": "student_only", "against": "hinton"},
]
SITTINGS = (2, 1, None)
DAMAGED = b"damaged"
AT_ONCE = len(os.sched_getaffinity(0))


def planned():
    for n in range(len(SITTINGS)):
        study = assemble(StudyFile.model_validate(TINY | {"contrasts": CONTRASTS[:n]}), "tiny.toml")
        yield study, study_row(study, ["mmdistill", "run"])


def scenario(root, studies):
    """Three runs of a study that grows; an order is given up and tried again, cache entries are damaged."""
    for n, (study, row) in enumerate(studies):
        if (root / "study.json").exists() and StudyFolder.open(root).revision > n + 1:
            continue
        with Lease(root) as lease:
            folder = StudyFolder.create(root, row, "", study.resolved(), lease.check)
            for final in [final for final in folder.finals() if final.is_given_up]:
                folder.withdraw(final.order_id)
            session = Session(study, folder, propose)
            run_inline(session, StageCache(root / "cache", checkpoint_seconds=0), most=SITTINGS[n])
            if n == 1:
                give_up_one(session)
                damage(root / "cache")
            compact(folder)


def give_up_one(session):
    """Give up an order on whose result no proposal depends."""
    for order in session.ready(()):
        if order.kind == "search":
            session.ended(order, "lost")
            return


def damage(cache):
    for path in cache.glob("teacher_outputs-*"):
        path.write_bytes(DAMAGED)


def is_planned(problem):
    """Return whether a problem is an entry we damaged and that nobody has read since."""
    path = Path(problem.rule.split(" is damaged")[0])
    return path.suffix == ".safetensors" and path.read_bytes() == DAMAGED


def science(root):
    return content_hash(tables(StudyFolder.open(root)))


def in_child(work):
    """Return the id of a process that does some work, and ends with 0 if that returns something true."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        code = 0 if work() else 1
    os._exit(code)


def attempted(root, studies, fault):
    """Run the study with a fault and return what the user would see of an error."""
    faults.plan(fault)
    try:
        scenario(root, studies)
    except (MmdistillError, OSError) as error:
        return str(error)
    except Exception:
        return f"BUG {traceback.format_exc()}"
    finally:
        faults.plan(None)
    return ""


def judged(root, studies, undisturbed):
    """Return what is wrong after going on with a study that was disturbed; nothing should be."""
    if (root / "study.json").exists():
        latest(StudyFolder.open(root))
    scenario(root, studies)
    folder = StudyFolder.open(root)
    problems = audit(root, root / "cache").problems
    wrong = [f"{problem.where}: {problem.rule}" for problem in problems if not is_planned(problem)]
    found = tables(folder)
    ids = Counter(found["trials"]["trial_id"].to_pylist())
    wrong += [f"twice: {name}" for name, count in ids.items() if count > 1]
    if set(ids) != set(undisturbed["trials"]):
        wrong.append(f"lost or foreign: {set(ids) ^ set(undisturbed['trials'])}")
    if set(found["trials"]["status"].to_pylist()) != {"complete"}:
        wrong.append("failed orders")
    hashes = {content_hash(found), content_hash(latest(folder))}
    if hashes != {undisturbed["hash"]}:
        wrong.append("another result than undisturbed")
    return wrong


def injected(root, studies, undisturbed, point, nth, action):
    """Do one injection and write its result beside the study's folder."""
    fault = faults.Plan(point, nth, action)

    def reached():
        return attempted(root, studies, fault), fault.passed[point] >= nth

    result = {"point": point, "nth": nth, "action": action, "said": ""}
    if action in {"kill", "torn"}:
        status = os.waitpid(in_child(reached), 0)[1]
        result["landed"] = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    elif point.startswith("lease."):
        # A driver that could not say that it ended is found to be gone once its process is.
        status = os.waitpid(in_child(lambda: reached()[1]), 0)[1]
        result["landed"] = os.waitstatus_to_exitcode(status) == 0
    else:
        result["said"], result["landed"] = reached()
    try:
        result["wrong"] = judged(root, studies, undisturbed)
    except Exception:
        result["wrong"] = [traceback.format_exc()]
    (root.parent / f"{root.name}.json").write_text(json.dumps(result))
    shutil.rmtree(root)


def injections(passed):
    for point in faults.POINTS:
        for nth in range(1, min(passed[point], 3) + 1):
            for action in ("kill", "EIO", "ENOSPC"):
                yield point, nth, action
            if point.endswith(".written"):
                yield point, nth, "torn"


def main(folder, result, every):
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    studies = list(planned())
    counting = faults.Plan()
    faults.plan(counting)
    scenario(folder / "undisturbed", studies)
    faults.plan(None)
    trials = tables(StudyFolder.open(folder / "undisturbed"))["trials"]["trial_id"].to_pylist()
    undisturbed = {"hash": science(folder / "undisturbed"), "trials": trials}
    jobs = list(injections(counting.passed))[::every]
    # What is there now stays as it is: the children share it until they write to it.
    gc.collect()
    gc.freeze()
    running, roots = set(), [folder / f"{n:04}" for n in range(len(jobs))]
    for root, job in zip(roots, jobs, strict=True):
        if len(running) == AT_ONCE:
            running.discard(os.wait()[0])
        running.add(in_child(lambda root=root, job=job: injected(root, studies, undisturbed, *job)))
    while running:
        running.discard(os.wait()[0])
    found = [json.loads((folder / f"{root.name}.json").read_text()) for root in roots]
    result.write_text(json.dumps({"passed": counting.passed, "trials": trials, "injections": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
