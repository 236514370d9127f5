"""One table over all kinds of hosts: share rate, statistics, fuse() and errors are the same for each."""

import pytest
import torch
from ewa_hosts import EVERY_HOST
from ffn_kinds import spread_out

from pc_ewa.ewa import ExpertAverager, Gate, dense_state_dict, expert_layers, merge_experts, upcycle


@pytest.mark.parametrize("host", EVERY_HOST)
def test_averaging_keeps_the_mean_and_statistics_see_the_spread_shrink(host: str) -> None:
    model, _ = EVERY_HOST[host]()
    layers = expert_layers(spread_out(upcycle(model, 3, "all")))
    averager, mean = ExpertAverager(model, 0.3, "constant"), dense_state_dict(model)
    before = averager.statistics()
    averager.step()
    after = averager.statistics()
    assert list(before) == list(after) == list(layers)
    for name, layer in after.items():
        assert layer.spread == pytest.approx(before[name].spread * (1 - 0.3 * 3 / 2), rel=1e-9)
        assert before[name].cosine < layer.cosine < 1
        assert layer.share_rate == 0.3
    for name, value in dense_state_dict(model).items():
        torch.testing.assert_close(value, mean[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("host", EVERY_HOST)
def test_fuse_gives_an_ffn_of_the_mean_weights_and_merging_the_host(host: str) -> None:
    model, run = EVERY_HOST[host]()
    layout = repr(model.eval())
    expected = run(spread_out(upcycle(model, 3, "all")))
    for layer in expert_layers(model).values():
        stacks = dict(layer.experts.named_parameters())
        fused = dict(layer.fuse().named_parameters())
        assert fused.keys() == stacks.keys()
        for key, weight in fused.items():
            torch.testing.assert_close(weight, stacks[key].mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(merge_experts(model)), expected, rtol=0, atol=1e-12)
    assert repr(model) == layout


@pytest.mark.parametrize("host", EVERY_HOST)
def test_what_cannot_be_is_refused(host: str) -> None:
    model, _ = EVERY_HOST[host]()
    with pytest.raises(ValueError, match="has no mixture of experts to average"):
        ExpertAverager(model)
    early = torch.optim.SGD(model.parameters(), 0.1)
    upcycle(model, 3, "all")
    averager = ExpertAverager(model, 2 / 3, "constant")
    with pytest.raises(ValueError, match=r"share_rate=0\.7 with 3 experts; choose 0 to \(N-1\)/N"):
        ExpertAverager(model, 0.7, "constant")
    with pytest.raises(ValueError, match="not in the optimizer"):
        averager.attach(early)
    with pytest.raises(ValueError, match="has mixtures of experts already"):
        upcycle(model, 2, "all")
    merge_experts(model)
    with pytest.raises(ValueError, match="the model was merged"):
        averager.step()


@pytest.mark.parametrize("host", EVERY_HOST)
def test_a_gated_mixture_is_averaged_and_never_merged(host: str) -> None:
    model, run = EVERY_HOST[host]()
    upcycle(model, 3, "all", gate=Gate())
    assert run(model).isfinite().all()
    ExpertAverager(spread_out(model), 2 / 3, "constant").step()
    for layer in expert_layers(model).values():
        for stack in layer.experts.parameters():
            torch.testing.assert_close(stack, stack.mean(0).expand_as(stack))
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_experts(model)
