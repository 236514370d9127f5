"""Bad files: exit code 2, one line on stderr, and nothing trained or written."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pc_ewa.train import loop

Tool = Callable[..., Any]


def assert_refused(result: Any, *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for part in parts:
        assert part in err


def replace(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            old = file[key][:]
            if key == "data":
                old = (old / file["data"].attrs["scale"]).astype(np.float32)
            del file[key]
            file[key] = change(old)

    return damage


def put(values: np.ndarray, at: int, value: float) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


DATA_DEFECTS = {
    "missing": (lambda path: path.unlink(), "toy.h5 does not exist"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "cannot read", "Get a fresh copy"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read", "is it an HDF5 file"),
    "NaN": (replace("data", lambda data: put(data, 4, np.nan)), "shape 4 of data has nan", "remove or repair it"),
    "label too high": (replace("label", lambda label: put(label, 5, 3)), "label of shape 5 is 3; allowed: 0 to 2"),
    "label below 0": (replace("label", lambda label: put(label, 5, -1)), "label of shape 5 is -1; allowed: 0 to 2"),
    "empty class": (replace("label", lambda label: np.minimum(label, 1)), "empty class, no training shape of: torus"),
    "no test shapes": (replace("split", lambda split: 0 * split), "split 'test' is empty"),
}


@pytest.mark.parametrize("defect", DATA_DEFECTS)
def test_damaged_data_stops_before_training(
    tool: Tool, toy_config: Path, toy_file: Path, tmp_path: Path, defect: str
) -> None:
    path = tmp_path / "toy.h5"
    path.write_bytes(toy_file.read_bytes())
    damage, *parts = DATA_DEFECTS[defect]
    damage(path)
    assert_refused(tool("finetune", toy_config, f"data.path={path}", f"output={tmp_path}/run"), str(path), *parts)
    assert not (tmp_path / "run").exists()


class Bomb:
    """A pickle that would write a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def make_bad_checkpoint(kind: str, path: Path, good: Path) -> None:
    content = good.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("weights, honestly\n" * 50)
    elif kind == "noise":
        path.write_bytes(np.random.RandomState(0).bytes(5000))
    elif kind.startswith("truncated"):
        path.write_bytes(content[: int(len(content) * float(kind.split()[1]))])
    elif kind == "folder":
        path.mkdir()
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "no weights":
        torch.save({"epoch": 3, "config": torch.load(good, weights_only=True)["config"]}, path)
    elif kind == "torch bomb":
        torch.save({"model": Bomb(path.with_name("exploded"))}, path)
    elif kind == "plain bomb":
        path.write_bytes(pickle.dumps({"model": Bomb(path.with_name("exploded"))}))


BAD_CHECKPOINTS = {
    "none": "bad.pt is no",
    "folder": "bad.pt is no",
    "empty": "bad.pt",
    "text": "bad.pt",
    "noise": "bad.pt",
    "truncated 0.001": "bad.pt",
    "truncated 0.5": "bad.pt",
    "truncated 0.999": "bad.pt",
    "list": "bad.pt holds a list; expected a dict of weights",
    "no weights": "bad.pt holds no weights",
    "torch bomb": "bad.pt",
    "plain bomb": "bad.pt",
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_and_never_run(
    tool: Tool, trained: Any, toy_config: Path, kinds: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    bad = tmp_path / "bad.pt"
    make_bad_checkpoint(kind, bad, trained.folder / "checkpoints" / "last.pt")
    message = BAD_CHECKPOINTS[kind]
    assert_refused(tool("evaluate", bad), message)
    assert_refused(tool("merge_experts", bad, "-o", tmp_path / "out.pt"), message)
    assert_refused(tool("finetune", toy_config, "--from", bad, f"output={tmp_path}/run"), message)
    assert_refused(tool("pretrain", kinds["pretrain"], "--from", bad, f"output={tmp_path}/run"), message)
    tokenized = ("pretrain", kinds["point_bert"], f"tokenizer={bad}", f"output={tmp_path}/run")
    assert_refused(tool(*tokenized), message)
    assert set(os.listdir(tmp_path)) <= {"bad.pt"}


def test_a_checkpoint_of_another_architecture_is_refused(
    tool: Tool, trained: Any, toy_config: Path, tmp_path: Path
) -> None:
    checkpoints = trained.folder / "checkpoints"
    assert_refused(
        tool("evaluate", checkpoints / "last.pt", "model.dim=32"), "last.pt does not fit point_mae_classifier"
    )
    assert_refused(tool("evaluate", checkpoints / "last.pt", "ewa.num_experts=3"), "does not fit")
    torch.save({"stem.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    assert_refused(tool("evaluate", tmp_path / "resnet.pth", "--config", toy_config), "resnet.pth does not fit")
    merge = ("merge_experts", tmp_path / "resnet.pth", "-o", tmp_path / "out.pt")
    assert_refused(tool(*merge), "resnet.pth holds no config")
    finetune = ("finetune", toy_config, "--from", tmp_path / "resnet.pth", f"output={tmp_path}/run")
    assert_refused(tool(*finetune), "resnet.pth does not fit PointMAEClassifier")


def test_weights_of_another_kind_of_model_are_refused(
    tool: Tool, trained: Any, kinds: dict[str, Path], tmp_path: Path
) -> None:
    """And what the file seems to be is said."""
    classifier = trained.folder / "checkpoints" / "merged_last.pt"
    run = f"output={tmp_path}/run"
    assert_refused(tool("pretrain", kinds["pretrain"], "--from", classifier, run), "does not fit PointMAE: ")
    tokenized = ("pretrain", kinds["point_bert"], f"tokenizer={classifier}", run)
    assert_refused(tool(*tokenized), "does not fit DiscreteVAE: ", "it looks like a Point-MAE classifier")
    assert_refused(tool("evaluate", classifier, "--config", kinds["segment"]), "does not fit point_mae_segmenter")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trian.lr=1"], "unknown key 'trian'; did you mean 'train'?"),
        (["device=cuda:99"], "device='cuda:99' asks for GPU 99"),
        (["output=/dev/null/run"], "output=/dev/null/run: /dev/null is a file; choose another output"),
    ],
)
def test_a_wrong_config_is_one_line(
    tool: Tool, toy_config: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    assert_refused(tool("finetune", toy_config, f"output={tmp_path}/run", *overrides), message)
    assert os.listdir(tmp_path) == []


def test_overrides_of_a_checkpoints_config_are_checked_too(tool: Tool, trained: Any) -> None:
    checkpoint = trained.folder / "checkpoints" / "merged_last.pt"
    assert_refused(tool("evaluate", checkpoint, "data.rot=x"), "unknown key 'data.rot'; did you mean 'root'?")
    assert_refused(tool("evaluate", checkpoint, "--config", "none.yaml"), "none.yaml is not a file")


def test_the_process_says_so_with_one_line_and_exit_code_2(
    repository: Path, toy_config: Path, tmp_path: Path, one_thread_environment: dict[str, str]
) -> None:
    """Nothing that Python or torch adds on its way out."""
    command = [sys.executable, "tools/finetune.py", str(toy_config), f"output={tmp_path}/run", "model.num_heads=5"]
    done = subprocess.run(
        command, cwd=repository, env=one_thread_environment, capture_output=True, text=True, check=False
    )
    assert_refused((done.returncode, done.stdout, done.stderr), "num_heads=5 does not divide dim=16")


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(
    tool: Tool, toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", None)
    with pytest.raises(TypeError):
        tool("finetune", toy_config, f"output={tmp_path}/run")


@pytest.mark.parametrize(("key", "value"), [("model_arguments", [1]), ("class_names", 5)])
def test_a_checkpoint_with_wrong_types_is_one_line(
    tool: Callable[..., Any], trained: Any, tmp_path: Path, key: str, value: object
) -> None:
    content = torch.load(trained.folder / "checkpoints" / "merged_last.pt", weights_only=True)
    torch.save(content | {key: value}, tmp_path / "odd.pt")
    code, out, err = tool("evaluate", tmp_path / "odd.pt")
    assert (code, out) == (2, "")
    assert key in err
    assert err.count("\n") == 1


def test_a_name_that_is_too_long_is_one_line(tool: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    code, out, err = tool("merge_experts", trained.folder / "checkpoints" / "last.pt", "-o", tmp_path / ("x" * 300))
    assert (code, out) == (2, "")
    assert "too long" in err
    assert err.count("\n") == 1
