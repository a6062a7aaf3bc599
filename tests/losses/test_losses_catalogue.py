"""What is said of each loss beside its function."""

import importlib
import inspect

import pytest
import torch

from mmdistill.losses.base import LOSSES, loss
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")

# Of the baselines, the two papers and what the platform adds to them.
KEYS = {
    *(
        "kd",
        "softce",
        "fitnet",
        "at",
        "sp",
        "cc",
        "cckd",
        "pkt",
        "rkd",
        "darkrank",
        "vid",
        "crd",
        "nce",
        "nst",
    ),
    *("ft", "ab", "dkd", "mlld", "mmd", "ccl_nce", "skl", "pkd_cos", "pkdot", "mt_pkdot", "c2kd", "infonce"),
    *("cosine_alignment", "centroid", "ifd", "prediction_mse", "prediction_ccc"),
}
every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


def test_every_loss_of_the_field_is_there():
    assert set(LOSSES) >= KEYS


@every_loss
def test_its_path_leads_to_a_function_that_says_what_it_returns(name):
    module, function = LOSSES[name].path.rsplit(".", 1)
    found = getattr(importlib.import_module(module), function)
    assert found is LOSSES[name].function
    assert inspect.isfunction(found)
    assert found.__doc__.startswith("Return ")


@every_loss
def test_it_says_where_it_comes_from_and_what_it_takes(name):
    entry = LOSSES[name]
    assert entry.source
    assert entry.needs
    assert set(entry.needs) <= {"logits", "features", "maps", "labels"}
    assert entry.tasks in {"classification", "regression", "both"}
    assert ("labels" in entry.needs) == any(
        "label" in tensor or "target" in tensor for tensor, required in entry.tensors.items() if required
    )


@every_loss
def test_every_number_it_can_be_set_to_has_a_range_around_its_default(name):
    settings = LOSSES[name].settings
    assert set(LOSSES[name].ranges) <= set(settings)
    for setting in settings.values():
        if setting.choices:
            assert setting.default in setting.choices
        elif not isinstance(setting.default, bool | tuple):
            assert setting.range is not None
            if setting.default is not None:
                assert setting.range[0] <= setting.default <= setting.range[1]


def test_settings_and_tensors_are_read_from_the_signature():
    entry = LOSSES["lfme"]
    assert entry.tensors == {
        "student_LBC": True,
        "expert_LBE": True,
        "classes_E": False,
        "row_weights_LB": False,
    }
    assert {name: tuple(setting) for name, setting in entry.settings.items()} == {
        "temperature": (False, 2.0, (1.0, 20.0), ())
    }
    assert LOSSES["crd"].settings["n_data"].required
    assert LOSSES["cckd"].settings["kernel"].choices == ("gaussian", "bilinear")


def test_registering_leaves_the_function_as_it_is_and_refuses_a_second_of_the_name():
    def twice(student, teacher):
        return student - teacher

    with pytest.raises(ValueError, match="Two loss functions are called 'kd'"):
        loss("kd", source="none", needs=("logits",))(twice)
    assert LOSSES["kd"](torch.zeros(2, 3), torch.zeros(2, 3)) == 0
