"""Only what changes something is searched, whatever the recipe, its edits and the design."""

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmdistill.errors import ConfigError
from mmdistill.pipeline.recipe import recipes
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import Pipeline
from mmdistill.settings import declared_ranges, edited
from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

RUN = {
    "data": {
        "dataset": "planted",
        "options": {"rows": [64, 32, 32]},
        "student": ["face"],
        "privileged": ["audio", "decoy"],
        "label_fraction": 0.5,
    },
    "terms": {"transport": {"k": 5, "weight": 0.0}},
    "batch_size": 32,
}
EDITS = st.fixed_dictionaries(
    {},
    optional={
        "teachers.pool": st.sampled_from([["joint"], ["each", "joint"], ["student"], ["audio", "joint"]]),
        "alignment.kind": st.sampled_from(["none", "raw", "adapters"]),
        "alignment.loss": st.sampled_from(["cosine", "kl"]),
        "selection.policy": st.sampled_from(["sample", "batch", "mean", "weighted", "fixed"]),
        "hallucinator.kind": st.sampled_from(["none", "zeros", "relu"]),
        "student.init": st.sampled_from(["fresh", "visual_only"]),
        "terms.transport.weight": st.sampled_from([0.0, 0.5]),
        "terms.transport.coupling": st.sampled_from(["entropic", "identity"]),
        "terms.transport.anchors": st.sampled_from(["least", "all"]),
        "terms.transport.shift": st.sampled_from(["min", "none"]),
        "terms.transport.eps": st.just(0.01),
        "terms.feature_cosine": st.sampled_from([{"gate": "none"}, {"gate": "inverse"}]),
        "terms.centroid.weight": st.sampled_from([0.0, 0.5]),
        "terms.softened_logits.weight": st.sampled_from([0.0, 0.5]),
        "terms.conditional_entropy.weight": st.sampled_from([0.0, 0.5]),
    },
)
DESIGNS = st.sampled_from(
    [
        {"kind": "leave_one_out"},
        {"kind": "add_one"},
        {"kind": "teacher_subsets"},
        {"kind": "network_subsets"},
        {"kind": "controls"},
        {"kind": "axis", "path": "network.depth", "values": [1, 2]},
        {"kind": "factorial", "factors": {"optimiser.weight_decay": [0.0, 0.1], "epochs": [2, 3]}},
    ]
)


def key(run, path, value):
    changed = RunSettings.model_validate(edited(run.as_json(), {path: value}))
    return Pipeline(changed, "data").student.key


def is_absent_term(run, path):
    """Return whether a path is the weight of a term that is not there: giving it one adds a part."""
    root, name, *_ = (*path.split("."), "")
    return root == "terms" and name not in run.active_terms()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(recipe=st.sampled_from(list(recipes())), edits=EDITS, design=DESIGNS)
def test_a_setting_is_searched_where_and_only_where_it_changes_the_student(recipe, edits, design):
    arms = [
        {"name": "student_only", "recipe": "student_only"},
        {"name": "base", "recipe": recipe, "edits": edits},
    ]
    tree = {"name": "x", "run": RUN, "arms": arms, "designs": [design | {"base": "base"}]}
    try:
        study = assemble(StudyFile.model_validate(tree), "x.toml")
    except ConfigError:
        assume(False)
    for arm in study.arms:
        fixed = set(design.get("factors", {})) if arm.base else set()
        if arm.name.endswith(".doubled_information"):
            fixed.add("terms.mutual_information.weight")  # what it doubles, it holds
        for path, found in arm.space.items():
            assert key(arm.run, path, found.at(0.1)) != key(arm.run, path, found.at(0.9)), (arm.name, path)
        for path, found in declared_ranges(arm.run).items():
            if path in arm.space or path in fixed or is_absent_term(arm.run, path):
                continue
            assert key(arm.run, path, found.at(0.1)) == key(arm.run, path, found.at(0.9)), (arm.name, path)
