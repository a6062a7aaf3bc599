"""What every design keeps; a new one is found by discovery, and tried with the examples of its fields."""

import inspect

import pytest

from mmdistill.pipeline.run import RunSettings
from mmdistill.settings import edited
from mmdistill.studies.designs import DESIGNS, Base
from mmdistill.studies.file import NAME, ArmEntry, StudyFile
from mmdistill.studies.study import assemble

RUN = {
    "data": {
        "dataset": "planted",
        "options": {"rows": [64, 32, 32]},
        "student": ["face"],
        "privileged": ["audio", "decoy"],
        "label_fraction": 0.5,
    },
    "batch_size": 32,
}
ARMS = [
    {"name": "student_only", "recipe": "student_only"},
    {"name": "base", "recipe": "mt_pkdot", "edits": {"terms.transport.k": 5, "alignment.kind": "none"}},
    {"name": "other", "recipe": "mt_pkdot", "edits": {"terms.transport.k": 6, "alignment.kind": "none"}},
]
PLAIN = RUN | {
    "teachers": {"pool": ["each", "joint"]},
    "terms": {"transport": {"weight": 0.2, "eps_rel": 0.2, "k": 5}, "centroid": {}},
}


@pytest.fixture(params=list(DESIGNS))
def kind(request):
    return request.param


def tree_of(kind, **bases):
    """Return a design as a study file would have it: what it cannot do without is its own example."""
    fields = DESIGNS[kind].model_fields
    needed = {name: field.examples[0] for name, field in fields.items() if field.examples}
    return needed | {"kind": kind} | bases


def arms_of(kind, name="base"):
    base = Base(ArmEntry.model_validate(ARMS[1] | {"name": name}), RunSettings.model_validate(PLAIN))
    return DESIGNS[kind].model_validate(tree_of(kind, base=name)).arms(base)


def study_of(*designs):
    return assemble(
        StudyFile.model_validate({"name": "x", "run": RUN, "arms": ARMS, "designs": designs}), "x"
    )


def test_says_what_it_is(kind):
    design = DESIGNS[kind]
    assert design.model_fields["kind"].default == kind
    assert inspect.getdoc(design)
    assert inspect.getdoc(inspect.getmodule(design))


def test_generates_different_arms_that_say_what_they_are(kind):
    arms = arms_of(kind)
    assert arms
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        assert NAME.fullmatch(arm.name)
        assert arm.name.startswith("base")
        assert arm.name[4] in "@-."
        assert (arm.base, arm.frozen, arm.controls) == ("base", None, ())
        assert arm.change
        assert ArmEntry.model_validate(arm.as_json()) == arm


def test_the_same_base_gives_the_same_arms(kind):
    assert arms_of(kind) == arms_of(kind)


def test_an_arm_is_its_base_with_edits_that_no_search_undoes(kind):
    for arm in arms_of(kind):
        assert arm.recipe == ARMS[1]["recipe"]
        own = {path: value for path, value in arm.edits.items() if ARMS[1]["edits"].get(path) != value}
        assert all(arm.space[path] is False for path in own)
        assert RunSettings.model_validate(edited(PLAIN, arm.edits))


def test_all_its_arms_make_a_study(kind):
    study = study_of(tree_of(kind, base="base"))
    names = {
        name for arm in study.arms for name in [arm.name, *(arm.note or "").removeprefix("also ").split(", ")]
    }
    assert {arm.name for arm in arms_of(kind)} <= names
    assert len({arm.digest for arm in study.arms}) == len(study.arms)
    for arm in study.arms:
        for path in arm.run.active_terms():
            assert f"terms.{path}.weight" in arm.space or arm.base


def test_several_bases_are_a_union(kind):
    def found(*designs):
        return {arm.name: arm.digest for arm in study_of(*designs).arms}

    together = found(tree_of(kind, bases=["base", "other"]))
    assert together == found(tree_of(kind, base="base"), tree_of(kind, base="other"))
    assert any(name.startswith("other") and name != "other" for name in together)
