"""torch.compile and activation checkpointing of upcycled models."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ffn_kinds import spread_out, upcycled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pc_ewa.ewa import ExpertAverager, Gate, balance_loss, upcycle
from pc_ewa.models.transformer import Block

# One on the batched product, and one called per expert.
KINDS = ["llama", "scaled"]


@pytest.fixture
def graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """What `compile_whole` has compiled so far."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled: list[torch.fx.GraphModule] = []
    yield compiled
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def compile_whole(model: nn.Module, graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
    """Compile to one graph, a break of which is an error; it is kept, and run as it is."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize(("kind", "partition"), [("llama", "batch"), ("scaled", "batch"), ("llama", "sample")])
def test_training_is_one_graph_that_is_compiled_once(kind: str, partition: str, graphs: list) -> None:
    """And evaluation another: no step compiles again, whatever its share rate, nor does a change of mode."""
    model, x = upcycled(kind, partition=partition)
    model = spread_out(model)[:1]
    twin = copy.deepcopy(model)
    compiled = compile_whole(model, graphs)
    outputs = []
    for each, run in ((model, compiled), (twin, twin)):
        optimizer = torch.optim.SGD(each.parameters(), 0.01)
        averager = ExpertAverager(each, 0.3, "linear", 6).attach(optimizer)
        rates = set()
        for step in range(6):
            torch.manual_seed(step)
            optimizer.zero_grad()
            run(x).square().mean().backward()
            optimizer.step()
            rates.add(averager.share_rate_at(step))
            if step % 2:
                each.eval()
                with torch.no_grad():
                    outputs.append(run(x))
                each.train()
        assert len(rates) == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs[:3], outputs[3:], strict=True))
    assert len(graphs) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_batches_of_ever_other_sizes_do_not_compile_ever_again(graphs: list) -> None:
    """Once for sizes that the experts divide, once for those that they do not; all further ones are either."""
    model, x = upcycled("llama")
    compiled = compile_whole(model[:1], graphs)
    for count in (2, 3, 5, 7, 6, 9, 4):
        compiled(x[:1].expand(count, *x.shape[1:])).sum().backward()
    assert len(graphs) == 3


def test_gates_train_as_one_graph(graphs: list) -> None:
    """In evaluation the sizes of the groups depend on the tokens, and no graph has such."""
    torch.manual_seed(0)
    model = spread_out(upcycle(Block(8, 2, 2.0, 0.0), 3, "all", gate=Gate(balance_weight=0.5)))
    twin, x, gradients = copy.deepcopy(model), torch.randn(2, 6, 8), []
    for each, run in ((model, compile_whole(model, graphs)), (twin, twin)):
        for _ in range(3):
            each.zero_grad()
            (run(x).square().mean() + balance_loss(each)).backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert len(graphs) == 1


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
