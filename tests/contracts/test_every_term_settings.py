"""What the settings of every term keep; a new one is found by discovery."""

import pytest

from mmdistill.pipeline.run import RunSettings, canonical, live_ranges
from mmdistill.pipeline.studying import cohort_key
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS, TermSettings


@pytest.fixture(params=TERMS)
def name(request):
    return request.param


def test_a_weight_of_zero_is_absence(name):
    data = {"dataset": "digits_views", "student": ["rows"], "privileged": ["pixels"]}
    term = {name: {"weight": 0}}
    without = RunSettings.model_validate({"data": data})
    zero = RunSettings.model_validate({"data": data, "teachers": {"pool": ["joint"]}, "terms": term})
    assert canonical(zero).digest == canonical(without).digest
    assert live_ranges(zero, "classification").keys() == live_ranges(without, "classification").keys()
    assert cohort_key(zero) == cohort_key(without)


def test_says_where_it_comes_from_and_what_it_is(name):
    term = TERMS[name]
    assert term.source
    assert term.__doc__
    assert term.settings_type.__doc__
    assert issubclass(term.settings_type, TermSettings)
    assert term.needs & {"teacher", "pool"}
    assert term.needs <= {"teacher", "auxiliary", "pool", "layers", "masked", "average"}
    assert term.tasks <= {"classification", "regression"}
    assert term.tasks
    assert term.classification_only <= set(term.settings_type.model_fields)


def test_declared_ranges_contain_the_defaults(name):
    settings = TERMS[name].settings_type()
    ranges = declared_ranges(settings)
    assert "weight" in ranges
    for field, found in ranges.items():
        assert found.low <= getattr(settings, field) <= found.high, field


def test_a_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TERMS[name].settings_type(weight=-0.1)
