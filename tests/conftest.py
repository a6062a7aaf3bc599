"""What every test may count on: one thread, so that nothing spins and bits repeat; studies begun and run."""

import pytest
import torch

from mmdistill.records.study import StudyFolder

torch.set_num_threads(1)


# Before xdist, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep a file's tests in one process, for its fixtures, and all of Ray's; Ray first, as it waits most."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session")
def begin():
    """Return ``begin(study, root, text="")``: the session of a study in its folder, new or as it was left."""
    # Loading Optuna takes a second, and few tests begin a study.
    from mmdistill.cluster.proposals import propose
    from mmdistill.studies.provenance import study_row
    from mmdistill.studies.session import Session

    def _begin(study, root, text=""):
        folder = StudyFolder.create(root, study_row(study, ["mmdistill", "run"]), text, study.resolved())
        return Session(study, folder, propose)

    return _begin


@pytest.fixture(scope="session")
def finish():
    """Return ``finish(session, cache=None)``: execute what is left in this process; nothing may fail."""
    from mmdistill.cluster.inline import run_inline
    from mmdistill.pipeline.cache import StageCache

    def _finish(session, cache=None):
        run_inline(session, StageCache(cache or session.folder.root / "cache"))
        assert session.is_finished
        assert not session.failed
        return session

    return _finish
