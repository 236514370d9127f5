import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from pc_ewa.ops import knn, three_interpolate, three_nn

pytestmark = pytest.mark.usefixtures("backend")


def test_three_nn_is_knn_of_three() -> None:
    torch.manual_seed(0)
    queries, points = torch.randn(2, 9, 3), torch.randn(2, 20, 3)
    for lengths in (None, [20, 3]):
        for actual, expected in zip(
            three_nn(queries, points, lengths=lengths), knn(queries, points, 3, lengths=lengths), strict=True
        ):
            assert torch.equal(actual, expected)
    with pytest.raises(ValueError, match="k=3 neighbours in clouds of 2 points; choose 1 to 2"):
        three_nn(queries, points[:, :2])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_interpolation_is_the_weighted_sum(neighbours: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    features, weights = torch.randn(2, 7, channels).double(), torch.randn(2, 5, neighbours).double()
    index = torch.randint(7, (2, 5, neighbours))
    expected = np.einsum("bmkc,bmk->bmc", features.numpy()[np.arange(2)[:, None, None], index.numpy()], weights.numpy())
    np.testing.assert_allclose(three_interpolate(features, index, weights).numpy(), expected, atol=1e-12)


def test_interpolation_has_the_exact_gradient() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    weights = torch.rand(2, 5, 3, dtype=torch.double, requires_grad=True)
    index = torch.randint(4, (2, 5, 3))
    assert torch.autograd.gradcheck(lambda f, w: three_interpolate(f, index, w), (features, weights))


def test_half_precision_is_added_up_in_single() -> None:
    """2048 + 1 is 2048 in bfloat16, however often."""
    features = torch.tensor([[[2048.0], [1]]]).bfloat16()
    index, weights = torch.tensor([[[0] + 15 * [1]]]), torch.ones(1, 1, 16).bfloat16()
    mixed = three_interpolate(features, index, weights)
    assert mixed.dtype == torch.bfloat16
    assert mixed.item() == 2064, "2063, rounded once"


def test_known_points_get_their_own_features_back() -> None:
    """With the usual weights 1 / (d² + 1e-8), normalised, as part segmentation uses them."""
    torch.manual_seed(0)
    points, features = torch.randn(2, 50, 3), torch.randn(2, 50, 8)
    distances, index = three_nn(points, points)
    weights = 1 / (distances + 1e-8)
    mixed = three_interpolate(features, index, weights / weights.sum(2, keepdim=True))
    torch.testing.assert_close(mixed, features, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("features", "index", "weights"),
    [
        ((4, 3), (4, 3), (4, 3)),
        ((2, 4, 3), (2, 5, 3), (2, 5, 2)),
        ((2, 4, 3), (3, 5, 3), (3, 5, 3)),
        ((2, 4, 3), (2, 5, 0), (2, 5, 0)),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(
    features: tuple[int, ...], index: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, points, channels\) and twice"):
        three_interpolate(torch.zeros(features), torch.zeros(index).long(), torch.zeros(weights))


def test_knn_agrees_with_scipys_tree() -> None:
    """An independent implementation, on clouds large enough for every shortcut."""
    torch.manual_seed(0)
    points, queries = torch.randn(2, 3000, 3, dtype=torch.double), torch.randn(2, 100, 3, dtype=torch.double)
    distances, index = knn(queries, points, 24)
    for b in range(2):
        expected, neighbours = cKDTree(points[b].numpy()).query(queries[b].numpy(), 24)
        np.testing.assert_array_equal(index[b].numpy(), neighbours)
        np.testing.assert_allclose(distances[b].sqrt().numpy(), expected, rtol=1e-12)
