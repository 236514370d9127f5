"""Golden test 8: two processes train the model that one process trains, and averaging needs no communication.

Sharded models (FSDP2) too: their statistics, checkpoints and merged weights are those of whole ones.
"""

from typing import Any

import pytest
import torch
from expert_scenarios import build, build_with_all_sorts, raised, train_alone, work
from torch import Tensor
from torch.multiprocessing import start_processes

from pc_ewa.ewa import ExpertAverager, dense_state_dict, expert_layers
from pc_ewa.ewa.statistics import LayerStatistics

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found; all scenarios in one start, which is most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    # Forks have imported everything already; after a backward pass on a GPU torch allows none.
    method = "spawn" if torch.cuda.is_available() else "fork"
    start_processes(work, (str(folder),), nprocs=2, start_method=method)
    with torch.serialization.safe_globals([LayerStatistics]):
        return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def check_weights(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=1e-12, msg=lambda text, name=name: name + text)


def test_golden_8_two_processes_train_what_one_trains_on_the_whole_batch(results: list) -> None:
    expected = train_alone()
    start = dict(build().named_parameters())
    assert all((weight - start[name]).abs().max() > 1e-3 for name, weight in expected.items() if "qkv" not in name)
    for rank in range(2):
        check_weights(results[rank]["data_parallel"]["weights"], expected)
        assert results[rank]["data_parallel"]["same"], "all ranks must hold bit-equal weights"


def test_golden_8_averaging_needs_no_communication_under_ddp(results: list) -> None:
    for result in results:
        assert result["data_parallel"]["control"] == 1, "the counter must count"
        assert result["data_parallel"]["communicated"] == 0


@pytest.mark.sharded
def test_golden_8_averaging_of_sharded_experts_is_local_and_exact(results: list) -> None:
    model = build()
    full = [stack.shape for layer in expert_layers(model).values() for stack in layer.parameters()]
    ExpertAverager(model, 0.5, "constant").step()
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for result in results:
        scenario = result["sharded_experts_averaged_once"]
        check_weights(scenario["weights"], expected)
        assert scenario["communicated"] == 0
        assert scenario["local"] == [(shape[0], shape[1] // 2, *shape[2:]) for shape in full]


@pytest.mark.sharded
def test_golden_8_fully_sharded_model_trains_what_one_process_trains(results: list) -> None:
    expected = train_alone()
    for result in results:
        check_weights(result["sharded_model_trained"]["weights"], expected)
        assert result["sharded_model_trained"]["communicated"] == 0


@pytest.mark.sharded
def test_merging_a_sharded_model_in_place_says_what_to_do(results: list) -> None:
    for result in results:
        in_place, fuse, upcycling = result["merging_a_sharded_model"]["errors"]
        assert "merge_experts(whole_copy(model))" in in_place
        assert "whole_copy(mixture).fuse()" in fuse
        assert "before fully_shard()" in upcycling


@pytest.mark.sharded
def test_a_sharded_model_merges_into_what_a_whole_one_does(results: list) -> None:
    whole = build_with_all_sorts()
    classes = [type(module).__name__ for module in whole.modules()]
    expected = dense_state_dict(whole)
    for result in results:
        scenario = result["merging_a_sharded_model"]
        check_weights(scenario["dense"], expected)
        assert scenario["classes"] == classes, "nothing of FSDP2 is left"
        sharded, copied, merged = scenario["outputs"]
        torch.testing.assert_close(copied, sharded, rtol=0, atol=1e-12)
        torch.testing.assert_close(merged, sharded, rtol=0, atol=1e-12)


@pytest.mark.sharded
def test_statistics_of_a_sharded_model_are_those_of_all_its_weights(results: list) -> None:
    for result in results:
        scenario = result["statistics_of_a_sharded_model"]
        for name, whole in scenario["whole"].items():
            before, after = scenario["before"][name], scenario["after"][name]
            assert after == pytest.approx(whole, rel=1e-12)
            # Those of hybrid sharding, where processes hold copies, count once.
            assert scenario["copies"][name] == pytest.approx(before, rel=1e-12)
            # The share rate of 0.5 among 3 experts leaves a quarter of the distance, also after a forward without
            # a backward, when FSDP2 shows whole copies of the weights.
            assert after.spread == pytest.approx(before.spread / 4, rel=1e-9)


@pytest.mark.sharded
def test_a_host_may_add_to_the_output_of_sharded_experts_in_place(results: list) -> None:
    for result in results:
        whole, sharded = result["added_to_in_place"]["gradients"]
        for expected, gradient in zip(whole, sharded, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.sharded
def test_checkpoints_of_parts_and_whole_ones_go_on_exactly(results: list) -> None:
    for result in results:
        scenario = result["checkpoints"]
        assert scenario["same_keys"]
        for way in ("parts", "gathered"):
            assert all(torch.equal(scenario[way][name], weight) for name, weight in scenario["expected"].items()), way


@pytest.mark.sharded
def test_an_optimizer_from_before_sharding_is_refused(results: list) -> None:
    for result in results:
        for error in result["sharded_too_late"]["errors"]:
            assert "build it after upcycle() and fully_shard()" in error


@pytest.mark.sharded
def test_golden_8_experts_sharded_on_axis_0_are_refused(results: list) -> None:
    for result in results:
        assert result["experts_sharded_on_axis_0"]["errors"] == 3 * [
            "experts sharded on axis 0; pass shard_placement_fn=expert_shard_placement to fully_shard"
        ]


def test_experts_that_something_has_flattened_are_refused() -> None:
    """As FSDP1 and ZeRO-3 do after the averager was built."""
    model = build()
    averager = ExpertAverager(model, 0.5, "constant")
    for stack in expert_layers(model)["1.mlp"].parameters():
        stack.data = stack.data.flatten()[:0]
    assert "torch.distributed.fsdp.fully_shard" in raised(averager.step)
