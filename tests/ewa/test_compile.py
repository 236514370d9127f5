"""torch.compile and activation checkpointing of upcycled models."""

import copy
from typing import Any

import pytest
import torch
from ffn_kinds import spread_out, upcycled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pc_ewa.ewa import ExpertAverager

# One on the batched product, and one called per expert.
KINDS = ["llama", "scaled"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_one_graph_that_is_compiled_once(kind: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, x = upcycled(kind)
    spread_out(model)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)  # a graph break is an error
    for each, run in ((model, compiled), (twin, twin)):
        optimizer = torch.optim.SGD(each.parameters(), 0.01)
        ExpertAverager(each, 0.3, "linear", 4).attach(optimizer)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            run(x).square().mean().backward()
            optimizer.step()
    assert len(graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert torch.equal(compiled.eval()(x), twin.eval()(x))
    assert len(graphs) == 2, "evaluation is another graph"


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=False)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(kind: str) -> None:
    model, x = upcycled(kind)
    spread_out(model)
    gradients = []
    for run in (model, Checkpointed(model)):
        model.zero_grad()
        torch.manual_seed(1)
        run(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
