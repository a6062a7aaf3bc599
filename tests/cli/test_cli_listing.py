from mmdistill.data import DATASETS
from mmdistill.losses.base import LOSSES
from mmdistill.pipeline.recipe import recipes


def test_every_data_set_is_listed(call):
    found = {entry["name"]: entry for entry in call("datasets", "--json").json}
    assert set(found) == set(DATASETS)
    assert found["digits_views"]["classes"] == 10
    assert found["digits_views"]["modalities"]["pixels"] == [8, 8]
    assert found["digits_views"]["licence"]
    assert "card.json" in found["table"]["title"]


def test_data_sets_as_text_show_their_modalities(call):
    text = call("datasets").out
    assert "pixels 8x8, fourier 8x5" in text
    assert "table: any Parquet file with a card" in text


def test_every_recipe_is_listed_with_its_source(call):
    found = {entry["name"]: entry for entry in call("recipes", "--json").json}
    assert set(found) == set(recipes())
    assert all(entry["source"] and entry["provenance"] and entry["note"] for entry in found.values())
    assert found["mt_pkdot"]["teachers"] == ["student", "each", "joint"]
    assert found["mt_pkdot"]["terms"] == ["transport", "centroid"]
    assert found["hinton"]["inferred"] == []
    assert "weight; the reference has 30000" in found["pkt"]["inferred"]
    assert "mt_pkdot: MT-PKDOT, without the hallucinator" in call("recipes").out


def test_every_loss_is_listed_with_its_settings(call):
    found = {entry["key"]: entry for entry in call("losses", "--json").json}
    assert set(found) == set(LOSSES)
    assert found["dkd"] == {
        "key": "dkd",
        "path": "mmdistill.losses.decoupled.dkd",
        "source": "Zhao et al. 2022; mdistiller mdistiller/distillers/DKD.py",
        "needs": ["logits", "labels"],
        "tasks": "classification",
        "tensors": {"student_LBC": True, "teacher_LBC": True, "labels_LB": True, "row_weights_LB": False},
        "settings": {
            "temperature": {"required": False, "default": 4.0, "range": [1.0, 20.0], "choices": []},
            "alpha": {"required": False, "default": 1.0, "range": [0.1, 10.0], "choices": []},
            "beta": {"required": False, "default": 8.0, "range": [0.1, 20.0], "choices": []},
        },
    }
    text = call("losses").out
    assert "kd: mmdistill.losses.softened.kd" in text
    assert "kernel gaussian (gaussian, bilinear), gamma 0.4 (0.01 to 2)" in text
    assert "n_data required (100 to 1e+07)" in text


def test_listing_loads_neither_torch_nor_ray(python):
    code = """
import sys
from mmdistill.cli.main import main
assert main(["recipes"]) == 0
assert main(["datasets"]) == 0
assert not {"torch", "ray", "optuna"} & set(sys.modules)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
