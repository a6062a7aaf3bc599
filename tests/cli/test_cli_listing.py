from mmdistill.data import DATASETS
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
    assert found["mt_pkdot"]["teachers"] == ["each", "joint"]
    assert found["mt_pkdot"]["terms"] == ["transport", "centroid"]
    assert found["hinton"]["inferred"] == []
    assert "weight; the reference has 100" in found["fitnet"]["inferred"]
    assert "mt_pkdot: MT-PKDOT, without the hallucinator" in call("recipes").out


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
