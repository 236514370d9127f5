"""The Point-MAE classifier and the patch encoder compute the numbers of the official code."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.ewa import merge_experts, upcycle
from pc_ewa.models import create_model
from pc_ewa.models.patches import PatchEncoder


def test_official_weights_give_the_official_logits_and_loss(
    clouds: Callable[..., Tensor], official_weights: Callable[..., dict]
) -> None:
    model = create_model(
        "point_mae_classifier", num_classes=10, dim=48, depth=2, num_heads=3, num_groups=16, group_size=16
    ).eval()
    model.load_state_dict(official_weights(model), strict=True)
    points = clouds(3, 3, 128)

    def check(logits: Tensor) -> None:
        expected = torch.tensor([-0.544287, 0.266851, -0.032091, -0.559357])
        torch.testing.assert_close(logits[0, :4], expected, rtol=0, atol=1e-5)
        loss = F.cross_entropy(logits, torch.tensor([0, 4, 9]))
        assert loss.item() == pytest.approx(2.652506, abs=1e-5)

    with torch.no_grad():
        check(model(points))
        check(upcycle(model, 3, "all")(points))
        check(merge_experts(model)(points))


class OfficialEncoder(nn.Module):
    """The patch encoder as the official code writes it: convolutions along the points, concatenation, two maxima."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Conv1d(width, 2 * width, 1)
        )
        wide = 4 * width
        self.second_conv = nn.Sequential(
            nn.Conv1d(wide, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(inplace=True), nn.Conv1d(wide, dim, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        batch, count, size, _ = groups.shape
        local = self.first_conv(groups.reshape(batch * count, size, 3).transpose(2, 1))
        whole = local.max(dim=2, keepdim=True).values
        both = torch.cat([whole.expand(-1, -1, size), local], dim=1)
        return self.second_conv(both).max(dim=2).values.reshape(batch, count, -1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [8, 128])
def test_split_patch_encoder_is_the_official_one_forward_and_backward(width: int, training: bool) -> None:
    torch.manual_seed(0)
    ours, official = PatchEncoder(12, width).double(), OfficialEncoder(12, width).double()
    for buffer in ours.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    official.load_state_dict(ours.state_dict(), strict=True)
    groups, weight = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 3, 12).double()
    results = []
    for encoder in (ours.train(training), official.train(training)):
        x = groups.clone().requires_grad_()
        tokens = encoder(x)
        (tokens * weight).sum().backward()
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        results.append({"tokens": tokens, "groups": x.grad, **gradients, **dict(encoder.named_buffers())})
    for name, expected in results[1].items():
        torch.testing.assert_close(
            results[0][name], expected, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_tokens_do_not_depend_on_the_order_of_points_in_a_group() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(12, 8).double().eval()
    groups = torch.randn(2, 3, 6, 3).double()
    torch.testing.assert_close(encoder(groups[:, :, torch.randperm(6)]), encoder(groups), rtol=0, atol=1e-14)


def test_logits_do_not_depend_on_the_order_of_points_but_the_first(
    classifier: Callable[..., nn.Module], clouds: Callable[..., Tensor]
) -> None:
    model, points = classifier().double().eval(), clouds(0, 2, 40).double()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    torch.testing.assert_close(model(points[:, order]), model(points), rtol=0, atol=1e-12)


def test_groups_are_centered_on_points_of_the_cloud(clouds: Callable[..., Tensor]) -> None:
    points = clouds(0, 2, 50)
    groups, centers = ops.group(points, 6, 9)
    assert groups.shape == (2, 6, 9, 3)
    assert centers.shape == (2, 6, 3)
    for cloud, group, center in zip(points, groups, centers, strict=True):
        assert torch.equal(center[0], cloud[0]), "sampling starts at the first point"
        for own, middle in zip(group, center, strict=True):
            distances = (cloud - middle).norm(dim=-1).sort().values[:9]
            torch.testing.assert_close(own.norm(dim=-1), distances)  # the 9 nearest, itself first, not rescaled
