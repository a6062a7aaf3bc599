"""How many runs of a study train together, where its file leaves that to us."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from mmdistill.pipeline.cohorts import best_lanes
from mmdistill.records.study import StudyFolder
from mmdistill.studies.file import Resources
from mmdistill.studies.study import Study


class Lanes(NamedTuple):
    """How many runs of a study train together at most.

    Attributes:
        source: where the number is from: ``given`` in the study file; ``on record``, as the study began;
            ``measured`` on this machine just now; ``assumed``, since nothing may be timed.
    """

    number: int
    source: Literal["given", "on record", "measured", "assumed"]


def lanes_on_record(root: Path) -> int | None:
    """Return the number of the study in a folder; None if there is no study yet."""
    if not (root / "study.json").exists():
        return None
    lanes: int = StudyFolder.open(root).resolved["lanes"]
    return lanes


def with_lanes(study: Study, on_record: int | None) -> Study:
    """Return the study with a number in place of ``resources.lanes = "auto"``.

    The number is part of what a study is, since the last bits of a run depend on its company; so it is
    measured once, on the arm with the most terms, and read back from then on.

    Args:
        study: the study.
        on_record: the number of the study that is continued; None for a new one.
    """
    resources = study.file.resources
    if resources.lanes != "auto":
        return study
    lanes = on_record
    if lanes is None:
        dearest = max(study.arms, key=lambda arm: (arm.run.hallucinates(), len(arm.run.active_terms())))
        # A run cannot race alone.
        lanes = max(best_lanes(dearest.run, concurrent_here(resources)), 2 if study.file.search.racing else 1)
    settled = resources.model_copy(update={"lanes": lanes})
    return replace(study, file=study.file.model_copy(update={"resources": settled}))


def concurrent_here(resources: Resources) -> int:
    """Return how many orders run at once on the CPUs of this machine."""
    asked = resources.cpus * max(resources.workers, 1)
    fits = max(1, int(len(os.sched_getaffinity(0)) / asked))
    return min(resources.concurrent or fits, fits)


def planned_lanes(study: Study, on_record: int | None, *, may_measure: bool) -> tuple[Study, Lanes]:
    """Return the study with the lanes a plan counts with, and where their number is from.

    Args:
        study: the study.
        on_record: the number of the study that is continued; None for a new one.
        may_measure: whether some CPU seconds may be spent; a run would.
    """
    if study.file.resources.lanes != "auto":
        return study, Lanes(study.lanes, "given")
    if on_record is None and not may_measure:
        return study, Lanes(study.lanes, "assumed")
    settled = with_lanes(study, on_record)
    return settled, Lanes(settled.lanes, "measured" if on_record is None else "on record")
