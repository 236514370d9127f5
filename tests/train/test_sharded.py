"""train.sharding=fsdp: two processes with a share of the model each train what two whole ones train."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import assert_equal
from torch import Tensor
from two_processes import commands_in_two

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train import run
from pc_ewa.train.distributed import World
from pc_ewa.train.run import check
from pc_ewa.train.sharding import check_sharding

MakeExperiment = Callable[..., Experiment]


def in_two_processes(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the fixture `runs`."""
    return pytest.mark.sharded(pytest.mark.slow(test))


# 20 of 21 samples are a batch: batch norms see 10 in each process, of which the noise of rounding is not magnified.
TOY = ["train.batch_size=20", "train.steps=3", "train.eval_every=3", "train.save_every=1", "train.keep=3"]
TOY += ["ewa.schedule=constant", "ewa.init=independent", "train.clip_grad=1"]
# What else there is in a run, together: gates, parts of a batch, autocast, the mean of weights and its statistics.
GATED = ["ewa.gate.balance_weight=0.5", "train.accumulate=2", "train.precision=bf16", "average.kind=swa"]
GATED += ["train.batch_size=20", "average.start=0", "train.steps=2", "train.save_every=2"]
BERT = ["ewa.num_experts=2", "ewa.schedule=constant", "average.kind=ema", "average.decay=0.5", "train.batch_size=16"]
BERT += ["train.steps=2", "train.eval_every=2"]


@pytest.fixture(scope="module")
def runs(
    toy_config: Path, tiny_configs: dict[str, Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of runs in two processes: "fsdp" and "ddp", and those that go on from their second step."""
    folder = tmp_path_factory.mktemp("sharded")

    def train(name: str, config: Path, sharding: str, *overrides: str) -> list[object]:
        return ["train", config, f"output={folder}/{name}", f"train.sharding={sharding}", *overrides]

    done = commands_in_two(
        train("ddp", toy_config, "none", *TOY),
        train("fsdp", toy_config, "fsdp", *TOY),
        ["stopped", folder / "fsdp", 2, folder / "fsdp to alone"],
        ["stopped", folder / "fsdp", 2, folder / "fsdp to fsdp"],
        train("fsdp to fsdp", toy_config, "fsdp", *TOY),
        ["stopped", folder / "fsdp", 2, folder / "fsdp to ddp"],
        train("fsdp to ddp", toy_config, "none", *TOY),
        ["stopped", folder / "ddp", 2, folder / "ddp to fsdp"],
        train("ddp to fsdp", toy_config, "fsdp", *TOY),
        train("gated ddp", toy_config, "none", *GATED),
        train("gated fsdp", toy_config, "fsdp", *GATED),
        train("bert ddp", tiny_configs["point_bert"], "none", f"tokenizer={tokenizer}", *BERT),
        train("bert fsdp", tiny_configs["point_bert"], "fsdp", f"tokenizer={tokenizer}", *BERT),
    )
    assert done.code == 0, done.err
    assert "on 2 x cpu, sharded (FSDP2)" in done.out
    assert "FSDP2-wrapped" not in done.err
    return folder


def content(folder: Path, step: int | None = None) -> dict[str, Any]:
    name = "last" if step is None else f"step-{step:08d}"
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    return loaded


def records(folder: Path) -> dict[str, float]:
    """All that was recorded, but times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {f"{line['step']} {k}": v for line in lines for k, v in line.items() if "second" not in k}


def assert_alike(actual: Path, expected: Path) -> None:
    """Equal but for rounding: all metrics, all weights, the averaged ones too, and the state of the optimizer."""
    found, wanted = records(actual), records(expected)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    one, two = content(actual), content(expected)
    assert one.keys() == two.keys()
    for part in {"model", "averaged"} & one.keys():
        assert list(one[part]) == list(two[part])
        # Adam turns the sign of a gradient that is all rounding into a step: the rate bounds the biases before norms.
        check_tensors(one[part], two[part], atol=1.5e-3)
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    for index, state in two["optimizer"]["state"].items():
        check_tensors(one["optimizer"]["state"][index], state, atol=1e-4)


def check_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    for key, value in expected.items():
        assert type(actual[key]) is Tensor, key
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


@in_two_processes
@pytest.mark.parametrize("name", ["", "gated ", "bert "])
def test_shares_train_what_whole_models_train(runs: Path, name: str) -> None:
    assert_alike(runs / f"{name}fsdp", runs / f"{name}ddp")


@in_two_processes
def test_the_first_step_is_that_of_one_process(runs: Path, experiment: MakeExperiment, tmp_path: Path) -> None:
    """Gradients, their clipped norm and the averaging of experts, before rounding grows."""
    run(experiment("train.accumulate=2", *TOY))
    one, two = content(tmp_path / "run", 1), content(runs / "fsdp", 1)
    for key, value in one["model"].items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(two["model"][key], value, rtol=1e-5, atol=1e-7)
    for index, state in one["optimizer"]["state"].items():
        check_tensors(two["optimizer"]["state"][index], state, atol=1e-6)
    spread = "3 ewa/blocks.blocks.1.mlp/spread"
    assert records(runs / "fsdp")[spread] == pytest.approx(records(tmp_path / "run")[spread], rel=1e-4)


@in_two_processes
def test_a_killed_run_in_shares_ends_as_if_nothing_had_happened(runs: Path) -> None:
    one, two = content(runs / "fsdp to fsdp"), content(runs / "fsdp")
    for part in ("model", "optimizer"):
        assert_equal(one[part], two[part])


@in_two_processes
@pytest.mark.parametrize("name", ["fsdp to ddp", "ddp to fsdp"])
def test_a_run_goes_on_in_shares_or_whole(runs: Path, name: str) -> None:
    assert_alike(runs / name, runs / "ddp")


@in_two_processes
def test_a_run_in_shares_goes_on_in_one_process(runs: Path, toy_config: Path) -> None:
    """Which sees whole batches in its norms, so that only the start is the same."""
    folder, seen = runs / "fsdp to alone", content(runs / "fsdp", 2)
    summary = run(load_experiment(toy_config, [f"output={folder}", "train.sharding=fsdp", *TOY]))
    assert summary["steps"] == 3
    assert "resuming after step 2" in (folder / "log.txt").read_text()
    assert content(folder)["model"].keys() == seen["model"].keys()
    alone = json.loads((folder / "environment.json").read_text())
    assert alone["processes"] == 1


@in_two_processes
def test_merged_files_are_those_of_whole_models(runs: Path) -> None:
    for which in ("last", "best"):
        one, two = (content_of(runs / f"bert {name}/checkpoints/merged_{which}.pt") for name in ("fsdp", "ddp"))
        assert not any("experts" in key for key in one)
        assert list(one) == list(two)
        check_tensors(one, two, atol=1.5e-3)


def content_of(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)["base_model"]
    return weights


@pytest.mark.sharded
def test_experts_that_the_processes_do_not_divide_are_refused(experiment: MakeExperiment) -> None:
    made = experiment("train.sharding=fsdp", "train.batch_size=15")
    with pytest.raises(
        ConfigError, match=r"^train.sharding=fsdp over 5 processes: they divide no axis of .*fc1.weight \(2, 64, 16\)"
    ):
        check(made, processes=5)


def test_one_process_trains_the_whole_model(experiment: MakeExperiment, tmp_path: Path) -> None:
    run(experiment("train.sharding=fsdp", "train.steps=1"))
    assert "on 1 x cpu, whole" in (tmp_path / "run" / "log.txt").read_text()


def test_a_torch_that_cannot_shard_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "Stream", object)
    with pytest.raises(ConfigError, match="shards on GPUs alone"):
        check_sharding(torch.nn.Linear(2, 2), World(0, 2, torch.device("cpu")))
