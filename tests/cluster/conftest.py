"""Ray's environment, and a whole study small enough to take a second."""

import pytest

from mmdistill.cluster.environment import prepare
from mmdistill.settings import merged
from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

# Ray reads its authentication mode once, when it is first imported, by whichever test that is.
prepare()

TINY = {
    "name": "tiny",
    "seed": 3,
    "run": {
        "epochs": 2,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [64, 32, 32]},
            "student": ["face"],
            "privileged": ["audio", "decoy"],
            "label_fraction": 0.5,
        },
        "teachers": {"epochs": 2, "out_of_fold": 2},
        "alignment": {"epochs": 2},
    },
    "arms": [
        {"name": "student_only", "recipe": "student_only"},
        {"name": "hinton", "recipe": "hinton"},
        {"name": "mt_pkdot", "recipe": "mt_pkdot", "edits": {"terms.transport.k": 5}},
    ],
    "search": {"trials": 3, "startup": 2, "generation": 1, "top": 2, "seeds": 1},
    "confirm": {"pairs": 2},
    "contrasts": [{"question": "Does it help?", "arm": "hinton", "against": "student_only"}],
}


@pytest.fixture(scope="session")
def tiny():
    """Return what the file of the small study says."""
    return TINY


@pytest.fixture(scope="session")
def begun(begin):
    """Return a function to a session of the tiny study with some changes, or on other data, in a folder."""

    def _begun(root, changes=(), data=None):
        tree = merged(TINY, dict(changes))
        if data is not None:
            tree["run"] = tree["run"] | {"data": data}
        return begin(assemble(StudyFile.model_validate(tree), "tiny.toml"), root)

    return _begun


@pytest.fixture(scope="session")
def finished(begun, finish):
    """Return ``finished(root, ...)``: the session of such a study once it has run."""
    return lambda root, changes=(), *, data=None, cache=None: finish(begun(root, changes, data), cache)
