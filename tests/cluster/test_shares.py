"""How fake clusters are shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdistill.cluster.shares import shares
from mmdistill.errors import StudyError
from mmdistill.studies.file import Resources, StudyFile

LAPTOP = {"CPU": 2.0}
GPU_NODE = {"CPU": 16.0, "GPU": 2.0}


def of(nodes, **resources):
    return shares(Resources(**resources), nodes)


def test_without_workers_an_order_takes_its_cpus_and_as_many_run_as_fit():
    found = of([LAPTOP, {"CPU": 5.0}], cpus=2)
    assert found.order == {"cpu": 2.0}
    assert found.worker == {}
    assert found.concurrent == 1 + 2


def test_cpus_of_two_nodes_do_not_add_up_to_one_order():
    with pytest.raises(StudyError, match=r"1 x \(3 CPUs, 0 GPUs\).*\(2 CPUs, 0 GPUs\), \(2 CPUs, 0 GPUs\)"):
        of([LAPTOP, LAPTOP], cpus=3)


@pytest.mark.parametrize(
    ("gpus", "concurrent"), [(0.25, 8), (0.3, 6), (0.5, 4), (0.6, 2), (1, 2), (2, 1), (0.1, 16)]
)
def test_a_fraction_of_a_gpu_is_of_one_device(gpus, concurrent):
    found = of([GPU_NODE], gpus=gpus)
    assert found.order == {"cpu": 1.0, "gpu": gpus}
    assert found.gpus == gpus
    assert found.concurrent == concurrent


def test_a_gpu_is_not_asked_for_where_there_is_none_or_it_is_not_wanted():
    assert of([LAPTOP], gpus=0.5).order == {"cpu": 1.0}
    assert of([GPU_NODE], gpus=0.5, device="cpu").order == {"cpu": 1.0}


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(StudyError, match=r'resources\.device is "cuda", but the cluster has no GPU'):
        of([LAPTOP], device="cuda")


def test_more_gpus_than_a_node_has_are_refused():
    with pytest.raises(StudyError, match=r"1 x \(1 CPUs, 4 GPUs\).*lower resources.workers, cpus or gpus"):
        of([GPU_NODE], gpus=4)


def test_one_gpu_or_more_are_whole():
    tree = {"name": "x", "run": {}, "arms": [{"name": "a", "recipe": "hinton"}], "resources": {"gpus": 1.5}}
    with pytest.raises(ValueError, match="more than one GPU must be a whole number"):
        StudyFile.model_validate(tree)


def test_a_worker_and_its_driver_make_up_the_cpus_of_a_worker():
    found = of([{"CPU": 8.0}], workers=2, cpus=2)
    assert found.order["cpu"] + found.worker["CPU"] == pytest.approx(2)
    assert found.concurrent == 2


def test_gpus_of_a_group_are_those_of_its_workers():
    found = of([GPU_NODE], workers=2, gpus=0.5)
    assert "gpu" not in found.order
    assert found.worker["GPU"] == 0.5
    assert found.concurrent == 2


def test_a_group_never_waits_for_room_wherever_the_drivers_sit():
    # Two drivers on one of these nodes would leave no room there for a worker.
    assert of([{"CPU": 1.0}, {"CPU": 1.0}], workers=1).concurrent == 1
    assert of([LAPTOP], workers=1).concurrent == 2
    with pytest.raises(StudyError, match=r"one order needs 3 x"):
        of([LAPTOP], workers=3)


def test_the_study_may_ask_for_less():
    assert of([{"CPU": 8.0}], concurrent=3).concurrent == 3
    assert of([LAPTOP], concurrent=3).concurrent == 2


node = st.fixed_dictionaries({"CPU": st.integers(1, 16).map(float), "GPU": st.integers(0, 4).map(float)})


@given(
    st.lists(node, min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    st.sampled_from([0.2, 0.5, 1.0, 2.0]),
)
def test_what_runs_at_once_fits_into_the_cluster(nodes, workers, cpus, gpus):
    try:
        found = of(nodes, workers=workers, cpus=cpus, gpus=gpus)
    except StudyError:
        return
    each = found.order["cpu"] + workers * found.worker.get("CPU", 0)
    assert found.concurrent * each <= sum(n["CPU"] for n in nodes) + 1e-6
    assert found.concurrent * max(workers, 1) * found.gpus <= sum(n["GPU"] for n in nodes) + 1e-6
