"""`mmdistill rebuild`: the tables of a study, derived from its records again."""

from pathlib import Path

from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.records.board import TENSORBOARD, Board
from mmdistill.records.lease import Lease
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import rebuild


def rebuild_tables(study: Path, *, as_json: bool) -> int:
    """Write the tables again and print their content hashes; return 1 if they differ without a reason.

    What is missing of the TensorBoard tree is written too.
    """
    root = StudyFolder.open(readable(study)).root
    with Lease(root) as lease:
        folder = StudyFolder.open(root, lease.check)
        found = rebuild(folder)
        Board(folder, root / TENSORBOARD).catch_up()
    differs = not found.is_outdated and found.before != found.after
    if as_json:
        rows = {file.table: file.rows for file in found.manifest.files}
        hashes = {"before": found.before, "after": found.after, "outdated": found.is_outdated}
        print_json(hashes | {"manifest": found.manifest.number, "rows": rows})
    else:
        note = "  (records have come since)" if found.is_outdated and found.before else ""
        print(f"before  {found.before or 'absent or damaged'}{note}")
        print(f"after   {found.after}")
    if differs:
        say("The former tables held something else than the records; check those with `mmdistill verify`.")
    return int(differs)
