"""`pc-ewa benchmark` runs and judges rightly; its numbers are for a quiet machine to measure."""

import datetime
import importlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Tool = Callable[..., Any]
LIBRARIES = ("fpsample", "torch_quickfps", "torch_cluster", "open3d", "scipy", "faiss", "pykeops", "chamferdist")


@pytest.fixture
def module() -> Callable[[str], Any]:
    return lambda name: importlib.import_module(f"pc_ewa.benchmark.{name}")


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_step_is_timed_with_and_without_ewa(tool: Tool, toy_config: Path, tmp_path: Path) -> None:
    code, out, err = tool("benchmark", "step", toy_config, "--pairs", "2", f"output={tmp_path}/run")
    assert (code, err) == (0, "")
    assert "dense" in out
    assert "EWA" in out
    assert not (tmp_path / "run").exists()


def test_nothing_to_compare_is_one_line(tool: Tool, toy_config: Path) -> None:
    assert tool("benchmark", "step", toy_config, "ewa=null")[::2] == (
        2,
        f"error: {toy_config} has no ewa section to compare; add ewa.num_experts=4\n",
    )
    assert tool("benchmark", "step", toy_config, "--pairs=0").err == "error: --pairs 0; time at least one\n"


def test_overrides_stand_on_both_sides_of_an_option(tool: Tool, toy_config: Path) -> None:
    result = tool("benchmark", "step", toy_config, "train.lr=1", "--pairs=1", "train.lr=2", "trian.lr=1")
    assert result.err == "error: unknown key 'trian'; did you mean 'train'?\n"
    assert "unrecognized arguments: --pears=1" in tool("benchmark", "step", toy_config, "--pears=1").err


def test_precision_is_measured_and_saved(tool: Tool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = ("ops", "--only", "precision", "--rounds", "1", "--device", "cpu", "--save", str(page))
    code, out, err = tool("benchmark", *arguments)
    assert (code, err) == (0, "")
    assert re.search(r"^ours +100 % +100 % ", out, re.MULTILINE)
    cancelled = re.search(r"^torch.cdist +100 % +([\d.]+) %", out, re.MULTILINE)
    assert cancelled
    assert float(cancelled[1]) < 99, "the page warns of cdist off centre"
    text = page.read_text()
    assert f"pc-ewa benchmark {' '.join(arguments)}" in text
    assert datetime.date.today().isoformat() in text
    assert re.search(r"^\| ours +\| +100 % \|", text, re.MULTILINE)
    assert "None in this run." in text, "no target was measured"


def test_every_section_runs_without_the_libraries(
    module: Callable[[str], Any],
    no_libraries: None,
    toy_config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops, report = module("ops"), module("report")
    monkeypatch.setattr(module("contest"), "BURST", 0)
    tiny = ops.Plan(
        fps=(ops.Case((2, 40, 8), 2),),
        knn=(ops.Case((2, 8, 40), 1e9), ops.Case((1, 8, 60))),
        k=4,
        chamfer=(ops.Case((3, 30), 1e-9),),
        weighed=("ours",),
        precision=(1, 40),
        config=toy_config,
        pause=0,
    )
    measured = ops.measure(None, 2, "cpu", tiny)
    out = capsys.readouterr().out
    for row in ("torch.cdist + topk", "torch.cdist + min", "step in fp32", "step in bf16", "torch.cdist"):
        assert re.search(rf"^{re.escape(row)} +\d", out, re.MULTILINE), out
    assert len(re.findall(r"^ours .* yes$", out, re.MULTILINE)) == 3
    assert "FPS, 2x40->8, beside the fastest exact peer: at least 2x: not measured" in out
    assert re.search(r"kNN, 2x\(8 in 40\), beside the fastest peer: at least 1e\+09x: NOT met, \S+x \(torch", out)
    assert re.search(r"Chamfer.*3x\(30 vs 30\).*: at least 1e-09x: met, \S+x \(torch", out)
    assert re.search(r"Grouping, share of an fp32 training step: at most 2 %: (NOT )?met, \S+ %", out)
    assert "torch_cluster (not installed)" in out
    page = tmp_path / "page.md"
    report.write_page(page, measured, "the command")
    text = page.read_text()
    assert "$" not in text
    assert all(f"- {target.describe()}".replace("|", r"\|") in text for target in measured.targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0; time at least one"),
        (["--only", "chamfr"], "unknown section 'chamfr'; did you mean 'chamfer'?"),
        (["--device", "tpu"], "device='tpu'; choose auto, cpu, cuda or cuda:N"),
        (["--save", "none/page.md"], "--save none/page.md: there is no folder none; make it, or choose another"),
        (["--save", "."], "--save .: that is a folder; name a file in it"),
    ],
)
def test_wrong_arguments_are_one_line(tool: Tool, arguments: list[str], message: str) -> None:
    assert tool("benchmark", "ops", *arguments) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0; give at least 1"),
        (["--threads", "1", "--threads", "0"], "--threads 0; give at least 1"),
        (["--threads", "3000000000"], f"--threads 3000000000; this machine has {os.cpu_count()} cores"),
        (["--batch", "1000000000000"], "--batch 1000000000000; give at most 4096 clouds"),
        (["--batch", "-1"], "--batch -1; give at least 1"),
        (["--save", "none/page.md"], "--save none/page.md: there is no folder none; make it, or choose another"),
    ],
)
def test_wrong_arguments_of_latency_and_model_are_one_line(tool: Tool, arguments: list[str], message: str) -> None:
    assert tool("benchmark", "latency", "absent.pt", *arguments) == (2, "", f"error: {message}\n")
    assert tool("benchmark", "model", *arguments) == (2, "", f"error: {message}\n")


def test_the_model_is_timed_beside_the_official_style(
    module: Callable[[str], Any], toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pc_ewa.config import load_experiment

    model = module("model")
    plan = model.Plan(rounds=1, threads=(1,), batches=(2,), pause=0)
    found = model.measure(load_experiment(toy_config, ["device=cpu"]), plan)
    inference, training, where, *_ = found.tables
    assert {row[0] for row in inference.rows} >= {model.OFFICIAL, model.OFFICIAL_KEPT, model.DENSE, model.MERGED}
    assert {row[0] for row in training.rows} >= {model.OFFICIAL, model.DENSE, model.EWA}
    assert "matrix products" in {row[0] for row in where.rows}
    assert {target.bound for target in found.targets} >= {1.45, 1.35, 1.05, 1}
    page = found.page("pc-ewa benchmark model", 1)
    assert all(target.describe() in page for target in found.targets)
    capsys.readouterr()


def test_the_official_style_trains_too(module: Callable[[str], Any], toy_config: Path) -> None:
    from pc_ewa.config import load_experiment
    from pc_ewa.train.distributed import World
    from pc_ewa.train.loop import train_step

    experiment, world = load_experiment(toy_config, ["device=cpu", "ewa=null"]), World(0, 1, torch.device("cpu"))
    setup = module("model_steps").official_setup(experiment, world)
    before = {name: parameter.clone() for name, parameter in setup.model.named_parameters()}
    train_step(setup, experiment, world, setup.model, 1)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in setup.model.named_parameters())


def test_an_unknown_backend_is_one_line(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PC_EWA_OPS", "fast")
    code, out, err = tool("benchmark", "ops", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: PC_EWA_OPS=fast: no such backend")


def test_contenders_take_turns_and_the_slow_and_the_broken_stop_nobody(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = module("contest")
    monkeypatch.setattr(contest, "SLOW", 0.2)
    monkeypatch.setattr(contest, "BURST", 0)
    order: list[str] = []

    def worker(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return contest.Contender(name, call)

    def broken() -> None:
        raise RuntimeError("no\nway")

    everyone = [worker("quick", 0), worker("slow", 0.3), contest.Contender("broken", broken)]
    quick, slow, failed = contest.compete(everyone, 5, torch.device("cpu"), pause=0)
    assert failed.problem == "RuntimeError: no way"
    assert list(quick.seconds) == [0, 1, 2, 3, 4]
    assert list(slow.seconds) == [0, 1, 2]
    assert slow.ratio(quick) > 1.5
    rounds = order[4:]  # the first two of each are to compile and to guess
    assert rounds == ["quick", "slow", "slow", "quick", "quick", "slow", "quick", "quick"]


def test_the_ratio_is_the_median_of_the_rounds_both_ran(module: Callable[[str], Any]) -> None:
    contest = module("contest")
    peer, own = (contest.Score(contest.Contender(name, print)) for name in ("peer", "own"))
    own.seconds = {0: 1.0, 1: 2.0, 2: 1.0, 3: 100.0}
    peer.seconds = {0: 3.0, 1: 4.0, 2: 9.0}
    assert peer.ratio(own) == 3.0
    assert peer.median == 4000.0


def test_wrong_results_are_told(module: Callable[[str], Any]) -> None:
    exact = module("exact")
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    right = exact.ops.farthest_point_sample(points, 6)
    assert exact.judge_fps(right, points) == (True, "yes")
    late = exact.ops.farthest_point_sample(points, 6, start=[3, 4])
    assert exact.judge_fps(late, points) == (True, "yes, from a start of its own")
    assert not exact.judge_fps(torch.arange(12).view(2, 6), points).exact

    queries = points[:, :5]
    distances = exact.exact_distances(queries, points, 4)
    found, index = exact.ops.knn(queries, points, 4)
    assert torch.allclose(distances.float(), found)
    assert exact.judge_knn(index.flip(2), queries, points, distances).exact
    for wrong in (
        index[..., [0, 1, 2, 2]],
        torch.cat([index[..., :3], exact.ops.knn(queries, points, 5)[1][..., 4:]], 2),
    ):
        assert exact.judge_knn(wrong, queries, points, distances) == (False, "no, 0.0 % of the sets")

    assert exact.judge_chamfer(torch.tensor(1.000001), 1.0).exact
    assert exact.judge_chamfer(torch.tensor(1.1), 1.0) == (False, "no, off by 10 %")


def test_data_is_opened_and_drawn(module: Any, toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = module("data")
    targets = data.measure(1, data.Size(200, 1200), toy_config)
    assert [target.what for target in targets] == ["Opening", "A batch, times as fast as a training step"]
    assert targets[0].value < 1
    out = capsys.readouterr().out
    assert "opening 200 clouds of 1200 points (1 MB, int16)" in out
    assert "a batch of 8 x 48, drawn and augmented" in out
    assert "in the way of Point-MAE, 8 workers" in out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rounds=0", "--rounds 0; time at least one"),
        ("--points=100", "--shapes 12311 --points 100; at least 200"),
    ],
)
def test_impossible_data_is_one_line(tool: Tool, option: str, message: str) -> None:
    result = tool("benchmark", "data", option)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
