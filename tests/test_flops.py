"""Floating-point operations are those of what runs, not of what would run under a counter that hooks modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pc_ewa.flops import flops_of
from pc_ewa.models.patches import PatchEncoder


@pytest.mark.parametrize("training", [True, False])
def test_the_patch_encoder_is_counted_as_it_runs(training: bool) -> None:
    """Its third layer maps the features of a patch once per patch, and not once per point."""
    patches, points = 6, 4
    encoder = PatchEncoder(32).train(training)
    groups = torch.randn(2, patches // 2, points, 3)
    per_point = 3 * 128 + 128 * 256 + 256 * 512 + 512 * 32
    flops = 2 * patches * (points * per_point + 256 * 512)
    assert flops_of(lambda: encoder(groups)) == flops
    with torch.inference_mode():
        assert flops_of(lambda: encoder(groups)) == flops


def test_attention_is_counted_forward_and_backward() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 4
    assert flops_of(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * product
    assert flops_of(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward()) == 6 * product


def test_a_convolution_is_counted_and_its_result_is_the_same() -> None:
    layer, x, found = nn.Conv1d(3, 4, 2), torch.randn(1, 3, 7), []
    assert flops_of(lambda: found.append(layer(x))) == 2 * 6 * 4 * 3 * 2
    torch.testing.assert_close(found[0], layer(x))


def test_the_fast_path_of_attention_modules_is_counted_too() -> None:
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 7, 16)
    counted = flops_of(lambda: layer(x))
    with torch.no_grad():
        assert flops_of(lambda: layer(x)) == counted
    assert counted == 2 * (2 * 7 * 16 * (4 * 16 + 2 * 32)) + 2 * (2 * 2 * 7 * 7 * 16)
    assert torch.backends.mha.get_fastpath_enabled()
