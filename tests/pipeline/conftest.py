"""Small runs on planted data."""

import pytest
import torch

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.order import Lane, Order, StageRequest
from mmdistill.pipeline.run import RunSettings
from mmdistill.settings import edited

# As in an order; small products are slower on several threads.
torch.set_num_threads(1)

BASE = {
    "data": {
        "dataset": "planted",
        "options": {"rows": [120, 40, 40]},
        "student": ["face"],
        "privileged": ["audio", "decoy"],
    },
    "network": {"width": 8, "depth": 1},
    "teachers": {"epochs": 2, "out_of_fold": 3},
    "epochs": 2,
    "batch_size": 24,
    "seed": 5,
}
RECIPES = {
    "student_only": {},
    "hinton": {"teachers.pool": ["joint"], "terms.softened_logits": {}},
    "mt_pkdot": {
        "teachers.pool": ["each", "joint"],
        "alignment": {"kind": "adapters", "epochs": 2},
        "terms": {"transport": {"k": 8}, "centroid": {}, "softened_logits": {}},
        "data.label_fraction": 0.5,
    },
    # MT-PKDOT with whatever of it can be trained or chosen.
    "complete": {
        "teachers.pool": ["each", "joint"],
        "alignment": {"kind": "raw", "loss": "kl", "epochs": 2},
        "selection.policy": "weighted",
        "hallucinator": {"kind": "relu", "loss": "mse"},
        "student": {"init": "visual_only", "task_weight": 0.8},
        "terms": {"transport": {"k": 8, "eps": 0.01}, "feature_cosine": {"gate": "inverse"}},
        "data.label_fraction": 0.5,
    },
    "amid": {
        "teachers.pool": ["joint"],
        "teachers.training": "joint",
        "terms": {
            "mutual_information": {"teacher_gradient": True},
            "auxiliary_information": {"teacher_gradient": True},
            "conditional_entropy": {},
        },
    },
}


@pytest.fixture(autouse=True)
def _no_memory_of_other_tests():
    opened.cache_clear()


@pytest.fixture(scope="session")
def run():
    """Return a run of a recipe, with edits ``a__b=c``."""

    def build(recipe="student_only", **edits):
        changes = {path.replace("__", "."): value for path, value in edits.items()}
        return RunSettings.model_validate(edited(edited(BASE, RECIPES[recipe]), changes))

    return build


@pytest.fixture(scope="session")
def order():
    """Return an order over runs; one lane each, in the arm ``arm``."""

    def build(kind, *runs, arm="arm"):
        lanes = [
            Lane(
                trial_id=f"{kind}{k}",
                arm=arm,
                phase=kind,
                number=k,
                seed_index=k,
                pair_id=f"pair{one.seed}",
                run=one,
            )
            for k, one in enumerate(runs)
        ]
        return Order(order_id=f"{kind}-1", kind=kind, title="a title", lanes=tuple(lanes))

    return build


@pytest.fixture(scope="session")
def stages_order():
    def build(kind, name, *runs):
        requests = [StageRequest(kind=kind, name=name, pair_id=f"pair{one.seed}", run=one) for one in runs]
        return Order(order_id="stages-1", kind="stages", title="a title", stages=tuple(requests))

    return build


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "cache")
