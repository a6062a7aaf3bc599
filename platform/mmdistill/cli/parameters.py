"""Parameters that several commands share."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Study = Annotated[Path, Parameter(help="Folder of a study, e.g. results/quickstart.")]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Data as JSON on stdout, messages on stderr.")
]
Rows = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        consume_multiple=True,
        show_default=False,
        help="Arms, e.g. hinton 'mt_pkdot*'; all by default.",
    ),
]
