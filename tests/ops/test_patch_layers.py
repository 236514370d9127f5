"""The fused layers of the patch encoder: what plain torch computes, forward, gradients and running statistics."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pc_ewa.models.patches import PatchEncoder
from pc_ewa.ops.patch_layers import largest, norm_relu, norm_relu_linear_largest, plain_norm_relu

DTYPES = (torch.float32, torch.float64)


def norm_of(channels: int, dtype: torch.dtype, **options: object) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels, dtype=dtype, **options)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def both(x, shift, norm, weigh=None):
    """Outputs, gradients and statistics of the fused and of the plain layer."""
    found = []
    for function in (norm_relu, plain_norm_relu):
        own = copy.deepcopy(norm)
        inputs = [None if t is None else t.clone().requires_grad_() for t in (x, shift)]
        y = function(*inputs, own)
        y.backward(torch.ones_like(y) if weigh is None else weigh)
        gradients = [t.grad for t in (*inputs, own.weight, own.bias) if t is not None]
        found.append([y.detach(), *gradients, *own.buffers()])
    return found


@settings(deadline=None, max_examples=40)
@given(
    patches=st.integers(1, 40), size=st.integers(1, 200), channels=st.integers(1, 40), seed=st.integers(0, 99),
    shifted=st.booleans(), dtype=st.sampled_from(DTYPES), momentum=st.sampled_from([0.1, None]),
)  # fmt: skip
def test_the_fused_layer_is_batch_norm_and_relu(patches, size, channels, seed, shifted, dtype, momentum):
    torch.manual_seed(seed)
    if patches * size < 3:  # of two rows the gradient is 0, and what is left is rounding
        size = 3
    x = torch.randn(patches, size, channels, dtype=dtype) * 3 + 5
    shift = torch.randn(patches, channels, dtype=dtype) if shifted else None
    norm = norm_of(channels, dtype, momentum=momentum)
    # Next to 0 rounding decides which side of ReLU a value is on, and with it all of its gradient.
    doubled = copy.deepcopy(norm).double()
    before_relu = doubled((x if shift is None else x + shift[:, None]).double().flatten(0, 1)).view(x.shape)
    weigh = torch.where(before_relu.abs() > 1e-3, torch.randn_like(x), 0)
    fused, plain = both(x, shift, norm, weigh)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for one, other in zip(fused, plain, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp_min(1)


def test_rows_that_are_equal_become_the_bias():
    norm = norm_of(4, torch.float32)
    fused, plain = both(torch.full((3, 5, 4), 7.0), None, norm)
    torch.testing.assert_close(fused[0], norm.bias.detach().relu().expand(3, 5, 4), rtol=0, atol=1e-3)
    torch.testing.assert_close(fused[-2], plain[-2])


def test_nan_is_not_hidden():
    x = torch.randn(4, 8, 3)
    x[1, 2, 0] = torch.nan
    y = norm_relu(x, None, nn.BatchNorm1d(3))
    assert y[..., 0].isnan().all()
    assert not y[..., 1:].isnan().any()
    assert largest(x.requires_grad_())[1, 0].isnan()


def test_sums_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    x, shift, norm = torch.randn(700, 32, 20), torch.randn(700, 20), norm_of(20, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, _ = both(x, shift, norm)
        torch.set_num_threads(2)
        shared, _ = both(x, shift, norm)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


def test_second_derivatives_are_those_of_plain_torch():
    torch.manual_seed(0)
    x, shift, norm = torch.randn(6, 4, 3).double(), torch.randn(6, 3).double(), norm_of(3, torch.float64)
    found = []
    for function in (norm_relu, plain_norm_relu):
        inputs = [x.clone().requires_grad_(), shift.clone().requires_grad_()]
        (first,) = torch.autograd.grad(function(*inputs, norm).square().sum(), inputs[:1], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), inputs))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("linear", [False, True])
def test_second_derivatives_where_shift_and_weights_depend_on_the_features(linear):
    """The path from the features through their shift is counted once."""
    torch.manual_seed(0)
    start, norm, found = torch.randn(6, 4, 3).double(), norm_of(3, torch.float64), []
    weight, bias = torch.randn(5, 3).double(), torch.randn(5).double()
    functions = (norm_relu_linear_largest, plain_tail) if linear else (norm_relu, plain_norm_relu)
    for function in functions:
        x = start.clone().requires_grad_()
        layer = (weight * x.mean(), bias + x.sum()) if linear else ()
        y = function(x, x.cumsum(1).mean(1), norm, *layer)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), x)))
    torch.testing.assert_close(found[0], found[1])


def tail(function, x, shift, norm, weight, bias):
    """Output, gradients and statistics of the tail of the encoder, by the fused function or by plain layers."""
    own = copy.deepcopy(norm)
    inputs = [None if t is None else t.clone().requires_grad_() for t in (x, shift, weight, bias)]
    y = function(*inputs[:2], own, *inputs[2:])
    weigh = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    y.backward(weigh)
    return [y.detach(), *(t.grad for t in (*inputs, own.weight, own.bias) if t is not None), *own.buffers()]


def plain_tail(x, shift, norm, weight, bias):
    return torch.nn.functional.linear(plain_norm_relu(x, shift, norm), weight, bias).max(dim=1).values


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("patches", [1, 5, 128, 300])
def test_the_tail_is_norm_relu_linear_and_maximum(patches, shifted):
    torch.manual_seed(patches)
    x, shift = torch.randn(patches, 6, 7).double(), torch.randn(patches, 7).double() if shifted else None
    norm, weight, bias = norm_of(7, torch.float64), torch.randn(5, 7).double(), torch.randn(5).double()
    x[0, 3] = x[0, 1]  # two points that tie
    found = tail(norm_relu_linear_largest, x, shift, norm, weight, bias)
    expected = tail(plain_tail, x, shift, norm, weight, bias)
    # Of points that are the same it does not matter which one the gradient goes to.
    found[1][0, 1] += found[1][0, 3]
    expected[1][0, 1] += expected[1][0, 3]
    found[1][0, 3] = expected[1][0, 3] = 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(norm_relu_linear_largest(x, shift, copy.deepcopy(norm), weight, bias), expected[0])


def test_second_derivatives_of_the_tail_are_those_of_plain_torch():
    torch.manual_seed(0)
    x, norm = torch.randn(6, 4, 3).double(), norm_of(3, torch.float64)
    weight, bias, found = torch.randn(5, 3).double(), torch.randn(5).double(), []
    for function in (norm_relu_linear_largest, plain_tail):
        own, its_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(own, None, copy.deepcopy(norm), its_weight, bias)
        (first,) = torch.autograd.grad(y.square().sum(), own, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (own, its_weight)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("tracked", [True, False])
def test_norms_of_another_width_are_refused_and_not_read_beyond_their_end(tracked):
    norm = torch.nn.BatchNorm1d(8, track_running_stats=tracked)
    with pytest.raises((RuntimeError, ValueError)):
        norm_relu(torch.randn(4, 8, 16), None, norm)


@pytest.mark.parametrize("gone", ["running_mean", "running_var", "num_batches_tracked"])
def test_norms_that_lack_a_part_of_their_statistics_are_left_to_torch(gone):
    x, norm = torch.randn(4, 8, 3), norm_of(3, torch.float32).train()
    setattr(norm, gone, None)
    own, other = copy.deepcopy(norm), copy.deepcopy(norm)
    try:
        expected = plain_norm_relu(x, None, own)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        with pytest.raises(type(error)):
            norm_relu(x, None, other)
    else:
        assert torch.equal(norm_relu(x, None, other), expected)


def gradients_by(way, function, x):
    """The gradient of x for a gradient of the output that is not plain memory."""
    x = x.clone().requires_grad_()
    y = function(x)
    if way == "negative":
        return torch.autograd.grad(y, x, torch._neg_view(torch.ones_like(y)))[0]
    if way == "traced":
        make = torch.fx.experimental.proxy_tensor.make_fx(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])
        return make(torch.zeros_like(y))(torch.ones_like(y))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.full_like(y, 2))
        return torch.autograd.forward_ad.unpack_dual(torch.autograd.grad(y, x, dual)[0]).tangent


@pytest.mark.parametrize("way", ["negative", "traced", "dual"])
@pytest.mark.parametrize("name", ["largest", "norm_relu", "tail"])
def test_gradients_that_a_kernel_cannot_read(way, name):
    torch.manual_seed(0)
    x, norm, weight, bias = torch.randn(6, 4, 3).double(), norm_of(3, torch.float64), torch.randn(5, 3), torch.randn(5)
    ours, plain = {
        "largest": (largest, lambda x: x.max(dim=1).values),
        "norm_relu": (lambda x: norm_relu(x, None, norm), lambda x: plain_norm_relu(x, None, norm)),
        "tail": (
            lambda x: norm_relu_linear_largest(x, None, norm, weight.double(), bias.double()),
            lambda x: plain_tail(x, None, norm, weight.double(), bias.double()),
        ),
    }[name]
    torch.testing.assert_close(gradients_by(way, ours, x), gradients_by(way, plain, x))


def test_norms_that_are_frozen_or_in_evaluation_are_left_to_torch():
    x, norm = torch.randn(4, 8, 3), norm_of(3, torch.float32).eval()
    fused, plain = both(x, None, norm)
    assert all(torch.equal(one, other) for one, other in zip(fused, plain, strict=True))


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("of_all", [False, True])
def test_hooks_are_called(of_all, kind):
    """Hooks of the norm, and of all modules, as profilers and flop counters register them."""
    x, norm, seen = torch.randn(4, 8, 3, requires_grad=True), nn.BatchNorm1d(3), []
    register = getattr(nn.modules.module, f"register_module_{kind}") if of_all else getattr(norm, f"register_{kind}")
    handle = register(lambda module, *rest: seen.append(module))
    try:
        norm_relu(x, None, norm).sum().backward()
    finally:
        handle.remove()
    assert seen == [norm]


def test_a_hook_may_keep_the_output_of_the_norm():
    x, norm, kept = torch.randn(4, 8, 3), nn.BatchNorm1d(3), []
    norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    norm_relu(x, None, norm)
    assert kept[0].min() < 0


@settings(deadline=None, max_examples=40)
@given(
    patches=st.integers(1, 9), size=st.integers(1, 40), channels=st.integers(1, 20), seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_the_maximum_and_its_gradient_go_to_the_first_that_ties(patches, size, channels, seed, dtype):
    torch.manual_seed(seed)
    x = torch.randint(-3, 3, (patches, size, channels)).to(dtype)  # many ties
    given_x, weigh = x.clone().requires_grad_(), torch.randn(patches, channels, dtype=dtype)
    values = largest(given_x)
    values.backward(weigh)
    assert torch.equal(values, x.amax(1))
    first = (x == x.amax(1, keepdim=True)).to(torch.int64).argmax(1, keepdim=True)
    assert torch.equal(given_x.grad, torch.zeros_like(x).scatter(1, first, weigh[:, None]))
    with torch.no_grad():
        assert torch.equal(largest(x), values)


def as_wanted(x, shift, norm, weight, bias):
    """Values and gradients of the fused tail, after those of plain torch were found the same."""
    found = []
    for function in (norm_relu_linear_largest, plain_tail):
        own = copy.deepcopy(norm)
        y = function(x, shift, own, weight, bias)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, shift), create_graph=True)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    return found[0]


def test_inputs_with_strides_are_read_right_also_for_second_derivatives():
    torch.manual_seed(0)
    x = torch.randn(7, 5, 6, dtype=torch.float64, requires_grad=True).permute(2, 1, 0)
    shift = torch.randn(7, 6, dtype=torch.float64, requires_grad=True).t()
    norm = nn.BatchNorm1d(7, dtype=torch.float64)
    norm.weight = nn.Parameter(torch.arange(1.0, 15, dtype=torch.float64)[::2])
    _, first, _ = as_wanted(x, shift, norm, torch.randn(4, 7).double(), torch.randn(4).double())
    assert torch.autograd.grad(first.square().sum(), x)[0].abs().sum() > 0


def test_autocast_and_layers_without_bias_are_left_to_torch():
    torch.manual_seed(0)
    x, shift, norm = torch.randn(8, 4, 16), torch.randn(8, 16), norm_of(16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_relu_linear_largest(x.requires_grad_(), shift, norm, torch.randn(24, 16), torch.randn(24))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    norm_relu_linear_largest(x, shift, norm, torch.randn(24, 16, requires_grad=True), None).sum().backward()


def test_traced_and_transformed_code_does_not_reach_the_kernels():
    torch.manual_seed(0)
    x, norm = torch.randn(6, 4, 3), norm_of(3, torch.float32)
    weight, bias = torch.randn(5, 3), torch.randn(5)

    def call(x):
        return norm_relu_linear_largest(x, None, copy.deepcopy(norm), weight, bias)

    expected = torch.autograd.functional.jacobian(call, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(call, x, vectorize=True), expected)
    torch.testing.assert_close(torch.func.jacrev(call)(x), expected)


def test_gradients_of_many_outputs_at_once_by_vmap() -> None:
    x = torch.randn(4, 5, 6, requires_grad=True)
    for call in (largest, lambda x: x.max(1).values):
        y = call(x).flatten()
        rows = torch.vmap(lambda g, y=y: torch.autograd.grad(y, x, g, retain_graph=True)[0])(torch.eye(len(y)))
        one = [torch.autograd.grad(y[i], x, retain_graph=True)[0] for i in range(len(y))]
        assert torch.equal(rows, torch.stack(one))


@pytest.mark.parametrize("shape", [(1, 6), (4, 1)])
def test_a_shift_of_another_shape_is_broadcast_as_in_plain_torch(shape: tuple[int, int]) -> None:
    x, shift = torch.randn(4, 5, 6), torch.randn(shape)
    torch.testing.assert_close(norm_relu(x, shift, nn.BatchNorm1d(6)), plain_norm_relu(x, shift, nn.BatchNorm1d(6)))
    with pytest.raises(RuntimeError):
        norm_relu(x, torch.randn(3, 6), nn.BatchNorm1d(6))


def test_norms_that_take_statistics_of_the_batch_see_all_patches_together() -> None:
    """More patches than are encoded at a time, by norms of other classes and without running statistics."""
    encoder, groups = PatchEncoder(16, 8), torch.randn(4, 64, 8, 3)
    tokens = encoder(groups)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(encoder))
    torch.testing.assert_close(synced(groups), encoder(groups))
    assert int(synced.first_conv[1].num_batches_tracked) == 2
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)):
        norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = (
            False,
            None,
            None,
            None,
        )
    torch.testing.assert_close(encoder.eval()(groups), tokens)
