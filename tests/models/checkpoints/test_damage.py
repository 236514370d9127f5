"""Damage that torch itself does not notice: flipped bits, packed records, tensors larger than their file, NaN."""

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import check_refused, distinct, save
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.models import load_pretrained
from pc_ewa.models.checkpoints.bounds import no_larger_than
from pc_ewa.models.checkpoints.read import read_checkpoint, read_content
from pc_ewa.models.checkpoints.write import save_gated, save_weights

Build = Callable[..., nn.Module]


def equal(one: Any, other: Any) -> bool:
    """Compare two contents, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("format", ["official", "safetensors"])
def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(format: str, tmp_path: Path) -> None:
    path = save(distinct("point_mae"), tmp_path, format)
    whole, content = path.read_bytes(), read_content(path)
    draw, noticed = random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        place = draw.randrange(len(whole))
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            again = read_content(path)
        except CheckpointError:
            noticed += 1
        else:
            assert equal(again, content), place
    assert noticed >= 75, noticed  # the rest: padding, and headers that nobody reads


def test_every_bit_of_the_weights_counts(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(8.0)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    begin = whole.index(torch.arange(8.0).numpy().tobytes())
    for bit in range(0, 256, 5):
        damaged = bytearray(whole)
        damaged[begin + bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / "a.pt")


def test_a_file_saved_without_crcs_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(8.0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["weight"], torch.arange(8.0))


def test_packed_records_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed record"):
        read_checkpoint(path)


@pytest.mark.parametrize("shape", [(10**5, 10**5), (10**12,)])
def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A number repeated by a stride of 0."""
    torch.save({"weight": torch.zeros(1).expand(shape)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="claim"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", [*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?", "U3", "S3", "M8[s]"])
def test_numbers_and_arrays_of_numpy_are_read(tmp_path: Path, kind: str) -> None:
    array = np.zeros(3, kind)
    torch.save({"weight": torch.ones(2), "metrics": {"one": array[0], "all": array}}, tmp_path / "a.pt")
    metrics = read_checkpoint(tmp_path / "a.pt")["metrics"]
    assert metrics["one"] == array[0]
    assert (metrics["all"] == array).all()


def test_arrays_of_objects_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "odd": np.array([Path("a")], dtype=object)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds |damaged"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_never_loaded(value: float, tmp_path: Path) -> None:
    state = distinct("point_mae_classifier").state_dict()
    state["norm.weight"][3] = value
    torch.save({"base_model": state}, tmp_path / "a.pt")
    check_refused(tmp_path / "a.pt", distinct("point_mae_classifier"), "norm.weight holds NaN or inf")


@pytest.mark.parametrize("write", [save_weights, save_gated])
def test_weights_that_are_not_finite_are_never_written(write: Callable[..., None], tmp_path: Path) -> None:
    model = distinct("point_mae_classifier")
    model.get_parameter("norm.weight").data[0] = float("nan")
    form = ("official",) if write is save_weights else ()
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        write(model, tmp_path / "a.pt", *form, {}, [], {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.model.", "model._orig_mod."]
)
def test_prefixes_that_all_keys_share_are_dropped(prefix: str, tmp_path: Path) -> None:
    state = distinct("point_mae_classifier").state_dict()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "a.pt")
    model = distinct("point_mae_classifier", 1)
    report = load_pretrained(tmp_path / "a.pt", model)
    assert (len(report.loaded), report.missing, report.unexpected) == (len(state), (), ())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_names_that_only_end_like_a_wrapper_stay(tmp_path: Path) -> None:
    model = nn.ModuleDict({"submodule": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert len(load_pretrained(tmp_path / "a.pt", model).loaded) == 2


def test_a_file_without_the_counters_of_batch_norms_fits(tmp_path: Path) -> None:
    state = distinct("point_mae_classifier").state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    torch.save(old, tmp_path / "a.pt")
    assert len(load_pretrained(tmp_path / "a.pt", distinct("point_mae_classifier", 1)).loaded) == len(old)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Linear(10**10, 10**10),
        lambda: nn.Sequential(*(nn.Identity() for _ in range(1100))),
        lambda: nn.BatchNorm1d(10**9),
    ],
    ids=["wide", "beyond any memory", "deep", "one vector"],
)
def test_a_model_far_larger_than_its_file_is_refused_before_memory_is_touched(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt does not fit"), no_larger_than([torch.zeros(100)], "a.pt"):
        build()
    nn.Sequential(*(nn.Identity() for _ in range(2000)))  # nothing is counted any more


def test_the_digest_of_a_safetensors_file_covers_what_is_said_of_the_weights(tmp_path: Path) -> None:
    path = save(distinct("point_mae"), tmp_path, "safetensors")
    content = path.read_bytes()
    assert b'\\"ratios\\": [0.25' in content
    path.write_bytes(content.replace(b'\\"ratios\\": [0.25', b'\\"ratios\\": [0.75'))
    with pytest.raises(CheckpointError, match="damaged"):
        read_content(path)
