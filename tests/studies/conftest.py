import pytest

from mmdistill.studies.file import read_study_file
from mmdistill.studies.study import assemble

TINY = """
name = "tiny"
seed = 3

[run]
epochs = 2
batch_size = 16

[run.data]
dataset = "planted"
options = { rows = [64, 32, 32] }
student = ["face"]
privileged = ["audio", "decoy"]

[run.teachers]
epochs = 2
out_of_fold = 2

[[arms]]
name = "student_only"
recipe = "student_only"

[[arms]]
name = "hinton"
recipe = "hinton"

[[arms]]
name = "several"
recipe = "hinton"
edits = { "teachers.pool" = ["each", "joint"] }

[search]
trials = 3
startup = 2
generation = 1
top = 1
seeds = 2

[confirm]
pairs = 2
"""


@pytest.fixture(scope="session")
def tiny():
    """Return the text of a small sound study: three arms, three trials, two pairs."""
    return TINY


@pytest.fixture
def read(tmp_path):
    """Return a function from a text, and edits, to the study file; its path is ``s.toml``."""

    def from_text(text=TINY, *edits):
        path = tmp_path / "s.toml"
        path.write_text(text, encoding="utf-8")
        return read_study_file(path, edits)

    return from_text


@pytest.fixture
def put_together(read):
    """Return a function from a text, and edits, to the assembled study; problems begin with ``s.toml``."""

    def from_text(text=TINY, *edits):
        return assemble(read(text, *edits), "s.toml")

    return from_text
