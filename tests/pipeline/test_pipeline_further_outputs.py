"""What some terms look at beside features and logits: layers, and single modalities.

Axes: K lanes, N rows, D width, C outputs, S modalities of the student, M teachers.
"""

import pytest
import torch

from mmdistill.models.network import Network
from mmdistill.pipeline.bench import Bench, Piece
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.cohorts import lane_bytes, made_up_outputs
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import Pipeline
from mmdistill.pipeline.studying import student_objective
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import LocalRuntime

DATA = {
    "dataset": "digits_views",
    "student": ["rows", "fourier"],
    "privileged": ["pixels"],
    "label_fraction": 0.25,
}
TERMS = {"information_flow": {}, "modality_specific": {"weights": "saliency"}, "softened_logits": {}}


def run_of(*terms, pool=("joint", "rows"), **changes):
    tree = {
        "data": DATA,
        "network": {"width": 8, "depth": 3},
        "teachers": {"pool": pool, "epochs": 1, "out_of_fold": 2},
        "terms": {name: TERMS[name] for name in terms},
        "epochs": 1,
    }
    return RunSettings.model_validate(tree | changes)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return a bench, a run that looks at everything, its teacher outputs and its networks."""
    run = run_of("information_flow", "modality_specific")
    fold = opened(run.data, 0, False, "cpu")
    bench = Bench("outputs", StageCache(tmp_path_factory.mktemp("cache")), fold, LocalRuntime())
    (entry,) = bench.outputs([Piece(run, "pair")])
    networks = {}
    for name, modalities in run.networks().items():
        (teacher,) = bench.teacher(name, [Piece(run, "pair")])
        network = Network(fold.widths(modalities), fold.outputs, run.network, [0] * 3)
        load_lanes(network, [teacher.tensors])
        networks[name] = network
    return bench, run, entry, networks


def expanded(inputs, lanes):
    return {name: x.expand(lanes, *x.shape) for name, x in inputs.items()}


def test_a_network_tells_its_layers_and_says_the_same():
    network = Network({"a": 3, "b": 4}, 2, run_of("softened_logits").network, [0, 1])
    inputs = {"a": torch.randn(2, 5, 3), "b": torch.randn(2, 5, 4)}
    outputs, layers = network.with_layers(inputs)
    assert all(torch.equal(one, other) for one, other in zip(outputs, network(inputs), strict=True))
    assert [layer.shape for layer in layers] == [(2, 5, 16)] * 2
    below_KBD = torch.relu(network.encoders["b"].layers[0](inputs["b"]))
    torch.testing.assert_close(layers[0][..., 8:], below_KBD)


def test_frozen_teachers_say_what_they_say_of_layers_and_single_modalities(found):
    bench, run, entry, networks = found
    inputs = bench.fold.train.inputs
    with torch.no_grad():
        for m, network in enumerate(networks.values()):
            _, layers = network.with_layers(expanded(inputs, 3))
            for n, layer_KNW in enumerate(layers):
                stored_NW = entry.tensors[f"layer_{n}"][m]
                width = layer_KNW.shape[-1]
                torch.testing.assert_close(stored_NW[:, :width], layer_KNW[0])
                assert not stored_NW[:, width:].any()
            for s, one in enumerate(sorted(run.data.student)):
                for key, keeps in (("alone", True), ("without", False)):
                    masked = {name: x * ((name == one) == keeps) for name, x in inputs.items()}
                    logits_KNC = network(expanded(masked, 3)).logits_KBC
                    torch.testing.assert_close(entry.tensors[key][m, :, s], logits_KNC[0])


def test_a_student_sees_layers_and_single_modalities_of_itself_and_of_the_chosen_teacher(found):
    bench, run, entry, _ = found
    objective = student_objective([run], [entry], bench.fold, LocalRuntime())
    term, seen = objective._terms["information_flow"], []
    term.register_forward_pre_hook(lambda _, given: seen.extend(given))
    rows_KB = torch.arange(6)[None]
    objective.losses(rows_KB)
    (batch,) = seen
    own = {name: bench.fold.train.inputs[name][:6][None] for name in run.data.student}
    choice_KB = objective._frozen.choose(rows_KB)
    for s, one in enumerate(sorted(run.data.student)):
        masked = {name: x * (name == one) for name, x in own.items()}
        torch.testing.assert_close(batch.masked.student_KBSC[:, :, s], objective.student(masked).logits_KBC)
    for i, m in enumerate(choice_KB[0].tolist()):
        torch.testing.assert_close(batch.layers.teacher[1][0, i], entry.tensors["layer_1"][m, i])
        torch.testing.assert_close(batch.masked.without_KBSC[0, i], entry.tensors["without"][m, i])
    for mine, expected in zip(batch.layers.student, objective.student.with_layers(own)[1], strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_teacher_that_trains_along_is_looked_at_in_the_same_way():
    run = run_of("information_flow", "modality_specific", pool=("joint",))
    run = run.model_copy(update={"teachers": run.teachers.model_copy(update={"training": "joint"})})
    fold = opened(run.data, 0, False, "cpu")
    objective = student_objective([run], None, fold, LocalRuntime())
    losses = objective.losses(torch.arange(8)[None])
    assert losses.terms["information_flow"].isfinite().all()
    losses.terms["modality_specific"].sum().backward()
    assert all(p.grad is None for p in objective._live.teacher.parameters())


def test_only_runs_that_look_at_more_have_other_outputs():
    pipelines = {
        terms: Pipeline(run_of(*terms), "data")
        for terms in (("softened_logits",), ("information_flow",), ("modality_specific",), tuple(TERMS))
    }
    assert len({pipeline.outputs.key for pipeline in pipelines.values()}) == 4
    assert len({tuple(stage.key for stage in p.teachers) for p in pipelines.values()}) == 1
    assert "layers" not in pipelines["softened_logits",].outputs.own


def test_made_up_outputs_have_the_shapes_of_real_ones(found):
    bench, run, entry, _ = found
    (made_up,) = made_up_outputs(run, 1, bench.fold)
    assert {n: t.shape for n, t in made_up.tensors.items()} == {n: t.shape for n, t in entry.tensors.items()}
    plain = run_of("softened_logits")
    assert lane_bytes(run, bench.fold) > lane_bytes(plain, bench.fold)


def test_a_teacher_that_sees_nothing_of_the_student_cannot_be_masked():
    with pytest.raises(ValueError, match=r"'pixels' sees none of data\.student"):
        run_of("modality_specific", pool=("pixels", "joint"))


def test_the_evidence_on_a_single_teacher_matters_where_a_term_looks_at_it():
    changed = {"selection": {"evidence": "in_sample", "policy": "batch"}}
    for name, settings in (("self_paced_experts", {}), ("softened_logits", {})):
        runs = [run_of(pool=("joint",), terms={name: settings}, **more) for more in ({}, changed)]
        keys = {Pipeline(run, "data").student.key for run in runs}
        assert len(keys) == (2 if name == "self_paced_experts" else 1)


def test_mixed_teachers_are_mixed_in_layers_and_single_modalities_too(found):
    bench, run, entry, _ = found
    run = run.model_copy(update={"selection": run.selection.model_copy(update={"policy": "mean"})})
    frozen = student_objective([run], [entry], bench.fold, LocalRuntime())._frozen
    rows_KB = torch.tensor([[5, 2, 9]])
    _, weights_KBM = frozen.taught(rows_KB)
    for n, layer in enumerate(frozen.layers(rows_KB, weights_KBM)):
        torch.testing.assert_close(layer[0], entry.tensors[f"layer_{n}"][:, rows_KB[0]].mean(dim=0))
    for name, said in zip(("alone", "without"), frozen.masked(rows_KB, weights_KBM), strict=True):
        torch.testing.assert_close(said[0], entry.tensors[name][:, rows_KB[0]].mean(dim=0))
