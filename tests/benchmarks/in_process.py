"""A whole study in this process, without Ray, for benchmarks that run many."""

from collections.abc import Sequence
from pathlib import Path

from mmdistill.records.study import StudyFolder


def run_in_process(file: Path, edits: Sequence[str], root: Path) -> StudyFolder:
    """Return the finished study of a file with edits, below ``root``; one thread, a cache of its own."""
    import torch

    from mmdistill.cluster.inline import run_inline
    from mmdistill.cluster.proposals import propose
    from mmdistill.pipeline.cache import StageCache
    from mmdistill.studies.provenance import study_row
    from mmdistill.studies.session import Session
    from mmdistill.studies.study import open_study

    torch.set_num_threads(1)
    study = open_study(file, edits)
    row = study_row(study, [])
    folder = StudyFolder.create(root / "study", row, file.read_text("utf-8"), study.resolved())
    run_inline(Session(study, folder, propose), StageCache(root / "cache"))
    return folder
