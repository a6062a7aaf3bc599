"""One worker and a group of one compute the same bits."""

import pytest
import torch
import torch.distributed as dist

from mmdistill.cluster.worker import GroupRuntime
from mmdistill.losses.task import cross_entropy
from mmdistill.models.network import Network, NetworkSettings
from mmdistill.training.optimiser import FlatParameters
from mmdistill.training.runtime import LocalRuntime

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather is deprecated:FutureWarning")


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield GroupRuntime(torch.device("cpu"), lambda: None)
    dist.destroy_process_group()


def turned(features, logits):
    """Return a loss whose gradient lies transposed in memory."""
    return cross_entropy(logits, torch.zeros(logits.shape[:2], dtype=torch.long)) + (
        features.mT.cumsum(dim=-1).square().mean(dim=(-2, -1))
    )


def gradient(runtime):
    network = Network({"a": 7, "b": 5}, 10, NetworkSettings(width=16), seeds=[1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(3, 24, size, generator=generator) for name, size in (("a", 7), ("b", 5))}
    parameters = FlatParameters(network)
    outputs = network(inputs)
    parameters.differentiate(turned(*(runtime.gather(output) for output in outputs)))
    return parameters.gradient_KP


def test_a_group_of_one_computes_the_bits_of_one_worker(group):
    assert torch.equal(gradient(group), gradient(LocalRuntime()))


def test_what_is_not_learned_is_gathered_as_well(group):
    outputs = torch.arange(6.0).view(1, 3, 2)
    for runtime in (group, LocalRuntime()):
        assert torch.equal(runtime.gather(outputs), outputs)
