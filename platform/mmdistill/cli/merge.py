"""`mmdistill merge`: studies from several machines in one folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mmdistill.cli.printing import command_line, print_json, say
from mmdistill.cli.reading import readable
from mmdistill.records.merging import merge


def merge_studies(output: Path, studies: Sequence[Path], *, as_json: bool) -> int:
    """Copy the studies into a new folder, and print what became of each."""
    command = shlex.join(command_line())
    origins = merge(readable(output), [readable(study) for study in studies], command)
    if as_json:
        print_json({"output": output, "studies": origins})
        return 0
    for origin in origins:
        what = "copied from" if origin.is_copied else "equal to what is there, not copied again:"
        print(f"{output / origin.study}: {what} {origin.source} (begun on {origin.host})")
    say(f"Ask all of them with: mmdistill query {shlex.quote(str(output))} @best_per_arm")
    return 0
