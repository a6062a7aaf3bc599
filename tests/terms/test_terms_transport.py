import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Shapes


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_transport_to_rescaled_features_is_nothing(scale):
    features = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(2))
    student, teacher = (Outputs(x, torch.zeros(2, 16, 4)) for x in (scale * features, features))
    settings = [TERMS["transport"].settings_type(k=8)] * 2
    term = TERMS["transport"](settings, Shapes(8, 8, 8, "classification", 4), [0, 1])
    torch.testing.assert_close(term(Batch(student, teacher)).value_K, torch.zeros(2), atol=2e-5, rtol=0)
