"""Write the finished study in ``tests/golden/store`` anew: some seconds on one core.

    python tests/golden/make_store.py [FOLDER]

Every named query, chart and table is tested on it. Only what cannot be derived is kept: neither the stage
cache, nor the TensorBoard tree, nor the compact tables.
"""

import shutil
import socket
import sys
import tempfile
from pathlib import Path

from mmdistill.cluster.inline import run_inline
from mmdistill.cluster.proposals import propose
from mmdistill.pipeline.cache import StageCache
from mmdistill.records.study import StudyFolder
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import Session
from mmdistill.studies.study import open_study

HERE = Path(__file__).parent
FILE = HERE / "store.toml"


def make(root: Path) -> None:
    """Run the study in ``store.toml`` in an empty folder, with one attempt killed and one failed."""
    socket.gethostname = lambda: "golden"
    study = open_study(FILE)
    row = study_row(study, ["mmdistill", "run", "tests/golden/store.toml"])
    folder = StudyFolder.create(root, row, FILE.read_text("utf-8"), study.resolved())
    session = Session(study, folder, propose)
    killed, failed = session.ready([], 2)
    folder.begin_attempt(killed.order_id)
    number = folder.begin_attempt(failed.order_id)
    folder.end_attempt(failed.order_id, number, "failed", "planted: the disk was away", 0.5)
    with tempfile.TemporaryDirectory() as cache:
        run_inline(session, StageCache(Path(cache)))
    shutil.rmtree(root / "tensorboard")


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "store"
    shutil.rmtree(place, ignore_errors=True)
    make(place)
