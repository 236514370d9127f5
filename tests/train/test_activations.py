"""Activation checkpointing: the same losses, gradients and statistics, with experts, gates and drop path."""

import copy

import pytest
import torch
from small_models import WITH_FFNS, run, small, tensors

import pc_ewa
from pc_ewa.ewa import Gate
from pc_ewa.train.activations import checkpoint_activations


@pytest.mark.parametrize(("name", "gate"), [*((name, None) for name in WITH_FFNS), ("point_mae_classifier", Gate())])
def test_gradients_and_statistics_are_those_of_the_plain_model(name, gate):
    torch.manual_seed(0)
    plain = small(name).double().train()
    pc_ewa.upcycle(plain, num_experts=2, layers="all", gate=gate)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    points = torch.randn(4, 64, 3, dtype=torch.float64)
    found = []
    for model in (plain, saving, copy.deepcopy(saving)):
        torch.manual_seed(1)
        floats = [t.square().mean() for t in tensors(run(model, points)) if t.is_floating_point() and t.requires_grad]
        torch.stack(floats).sum().backward()
        found.append(model)
    assert list(plain.state_dict()) == list(saving.state_dict())
    for model in found[1:]:
        for name, parameter in plain.named_parameters():
            other = model.get_parameter(name).grad
            assert (other is None) == (parameter.grad is None)
            torch.testing.assert_close(other, parameter.grad, rtol=1e-10, atol=1e-12)
        for name, statistic in plain.named_buffers():
            torch.testing.assert_close(model.get_buffer(name), statistic, rtol=1e-12, atol=0)


def test_a_graph_is_passed_through_twice():
    model = small("point_mae_classifier").train()
    checkpoint_activations(model)
    loss = model(torch.randn(2, 64, 3)).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
