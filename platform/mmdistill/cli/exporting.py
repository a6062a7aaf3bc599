"""`mmdistill export`: a study's searches as files of other tools."""

import shlex
from collections.abc import Callable
from pathlib import Path

from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.records.study import StudyFolder


def _optuna(study: Path, file: Path, as_json: bool) -> int:
    """Write one Optuna study per arm into a new file, and print their names."""
    # Optuna takes a second to import.
    from mmdistill.cluster.optuna_export import SQLITE, export_optuna

    exported = export_optuna(StudyFolder.open(readable(study)), readable(file))
    if as_json:
        print_json({"file": file, "studies": exported})
        return 0
    for one in exported:
        print(f"{one.name}: {one.trials} trials")
    url = f"sqlite:///{file}" if file.suffix in SQLITE else str(file)
    say(f"Look at them with: optuna-dashboard {shlex.quote(url)}")
    return 0


# By the name of the form: writes a study to a new file, as JSON or for people, and returns the exit code.
EXPORTS: dict[str, Callable[[Path, Path, bool], int]] = {"optuna": _optuna}
