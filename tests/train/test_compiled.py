"""`train.compile`: the same training, the same files, in one graph; and what it refuses."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_off import run_until_saved
from run_folder import assert_equal, repeatable_metrics

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train import compiled, run
from pc_ewa.train import setup as setups
from pc_ewa.train.compiled import check_compile, compiled_pass
from pc_ewa.train.distributed import World

MakeExperiment = Callable[..., Experiment]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Trace as for inductor, and run the graph as it is: no compiler takes its time."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_a_compiled_run_resumes_exactly_and_is_the_plain_one_to_rounding(
    experiment: MakeExperiment, counters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drop path and experts, in one graph, with the flag of GPUs; the keys are the plain ones."""
    rare = ("train.eval_every=2", "model.depth=1", "model.drop_path=0.5", "ewa.layers=all", "ewa.schedule=constant")
    monkeypatch.setattr(setups, "can_defer", lambda model, device: True)
    plain = experiment(*rare, f"output={tmp_path}/plain")
    whole, cut = (experiment(*rare, "train.compile=default", f"output={tmp_path}/{name}") for name in ("whole", "cut"))
    run(plain)
    run(whole)
    run_until_saved(2, cut, monkeypatch)
    run(cut)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    saved = {
        name: torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)
        for name in ("plain", "whole", "cut")
    }
    assert_equal(saved["whole"]["model"], saved["cut"]["model"])
    assert_equal(saved["whole"]["optimizer"], saved["cut"]["optimizer"])
    assert repeatable_metrics(tmp_path / "whole") == repeatable_metrics(tmp_path / "cut")
    assert saved["plain"]["model"].keys() == saved["whole"]["model"].keys()
    losses = [
        [line["loss"] for line in repeatable_metrics(tmp_path / name) if "loss" in line] for name in ("plain", "whole")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_unknown_mode_is_one_line(toy_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.compile='fast'.*default") as caught:
        load_experiment(toy_config, ["train.compile=fast"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        (("train.compile=default", "train.sharding=fsdp"), World(0, 2, CPU), "train.sharding=fsdp: shards"),
        (
            ("train.compile=default", "train.checkpoint_activations=true"),
            World(0, 1, CPU),
            "checkpoint_activations=true",
        ),
        (("train.compile=reduce-overhead", "train.accumulate=2"), World(0, 1, GPU), "train.accumulate=2: CUDA graphs"),
        (("train.compile=max-autotune",), World(0, 2, GPU), "2 processes: CUDA graphs"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    experiment: MakeExperiment, overrides: tuple[str, ...], world: World, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_compile(experiment(*overrides), world)


def test_a_machine_without_a_compiler_is_refused(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.compile=default: no C\+\+ compiler .*; or set train\.compile=null"):
        check_compile(experiment("train.compile=default"), World(0, 1, CPU))


def test_what_the_compiler_cannot_do_is_one_line(experiment: MakeExperiment) -> None:
    from torch._dynamo.exc import TorchDynamoException

    with (
        pytest.raises(ConfigError, match=r"train\.compile=default: torch cannot .* here: no such instruction; set"),
        compiled_pass(experiment("train.compile=default")),
    ):
        raise TorchDynamoException("no such\ninstruction")


@pytest.mark.slow
def test_inductor_trains_like_the_plain_loop(experiment: MakeExperiment, tmp_path: Path) -> None:
    """Without what it draws by generators of its own."""
    same = ("model.depth=1", "model.drop_path=0", "model.head_dropout=0", "ewa=null", "train.eval_every=2")
    torch._dynamo.reset()
    losses = []
    for made in (experiment(*same), experiment(*same, "train.compile=default", f"output={tmp_path}/compiled")):
        run(made)
        losses.append([line["loss"] for line in repeatable_metrics(Path(made.output)) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch._dynamo.reset()
