"""Part segmentation: parts stay with their points on the way to the loss, and a run goes to its end."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

from pc_ewa.config import Experiment
from pc_ewa.data import Clouds, load_dataset, write_hdf5
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.ewa import expert_layers
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.train import run
from pc_ewa.train.batches import Batch, Batches
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.objectives import Segment
from pc_ewa.train.setup import build

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def numbered(toy_parts_file: Path, tmp_path: Path) -> Clouds:
    """The toy clouds, whose parts are the positions of the points."""
    path = tmp_path / "numbered.h5"
    path.write_bytes(toy_parts_file.read_bytes())
    with h5py.File(path, "a") as file:
        file["part"][:] = range(64)
    return load_dataset("hdf5", "train", path=path)


def shapes_of(labels: Tensor, positions: Tensor, clouds: Clouds) -> Tensor:
    """Clouds of each label at these positions, (B, candidates, N, 3)."""
    everything, classes = clouds.batch(range(len(clouds)))
    return torch.stack([everything[classes == label][:, row] for label, row in zip(labels, positions, strict=True)])


HOW = {
    "as they are": (),
    "scaled and moved": ("augment.scale=[0.5, 2.0]", "augment.isotropic=true", "augment.shift=0.3"),
    "turned": ("augment.rotate=true",),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("recipe", ["ours", "official"])
@pytest.mark.parametrize("sampling", ["farthest", "random"])
def test_parts_follow_their_points(
    tiny: MakeExperiment, numbered: Clouds, sampling: str, recipe: str, how: tuple[str, ...]
) -> None:
    """Each batch is a similar image of one of the shapes, at the points whose numbers came with it."""
    own = ("train.steps=null", f"recipe={recipe}", f"data.sampling={sampling}", "augment.scale=null", "augment.shift=0")
    batches = Batches(numbered, tiny("point_mae_segmenter", *own, *how), 2, CPU)
    for step in (0, 3):
        points, labels, parts = batches.draw(step, 1)
        assert parts is not None
        assert (parts.shape, parts.dtype) == ((4, 48), torch.int64)
        assert all(len(row.unique()) == 48 for row in parts)
        distances = torch.cdist(points.double(), points.double())
        candidates = shapes_of(labels, parts, numbered).double()
        expected = torch.cdist(candidates, candidates)
        scaled = [d / d.amax((-1, -2), keepdim=True) for d in (distances[:, None].expand_as(expected), expected)]
        difference = (scaled[0] - scaled[1]).abs().amax((-1, -2))
        assert (difference < 1e-5).sum(1).tolist() == [1] * 4


def test_clouds_of_just_as_many_points_keep_their_order(tiny: MakeExperiment, numbered: Clouds) -> None:
    batch = Batches(numbered, tiny("point_mae_segmenter", "data.num_points=64"), 1, CPU).draw(0, 0)
    assert batch.parts is not None
    assert torch.equal(batch.parts, torch.arange(64).expand(8, -1))


def test_without_parts_a_batch_has_none(tiny: MakeExperiment, toy_file: Path) -> None:
    clouds = load_dataset("hdf5", "train", path=toy_file)
    assert Batches(clouds, tiny("point_mae_segmenter"), 1, CPU).draw(0, 0).parts is None


def test_the_loss_is_the_negative_log_likelihood_of_the_parts(tiny: MakeExperiment) -> None:
    scores = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    parts, seen = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]]), []

    def model(points: Tensor, categories: Tensor) -> Tensor:
        seen.append(categories)
        return scores

    batch = Batch(torch.zeros(2, 5, 3), torch.tensor([1, 0]), parts)
    loss = Segment(tiny("point_mae_segmenter")).loss(model, batch, 0)  # type: ignore[arg-type]
    by_hand = -sum(float(scores[b, n, parts[b, n]]) for b in range(2) for n in range(5)) / 10
    assert loss.loss.item() == pytest.approx(by_hand)
    right = sum(int(scores[b, n].argmax()) == int(parts[b, n]) for b in range(2) for n in range(5))
    assert loss.terms["accuracy"].item() == pytest.approx(right / 10)
    assert seen[0].tolist() == [1, 0]


def test_the_data_decides_the_numbers_of_outputs_and_categories(tiny: MakeExperiment) -> None:
    setup = build(tiny("point_mae_segmenter"), WORLD)
    assert setup.model_arguments == {"num_parts": 6, "num_categories": 3}
    assert setup.model.convs3.weight.shape[0] == 6  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("point_mae_segmenter", ("ewa.num_experts=2",)),
        ("point_mae_segmenter", ("ewa.num_experts=2", "data.sampling=random", "train.precision=bf16")),
        ("point_bert_segmenter", ("train.accumulate=2",)),
    ],
    ids=["farthest", "random bf16", "point_bert"],
)
def test_a_run_goes_to_its_end_and_its_file_measures_the_same(
    tiny: MakeExperiment, tmp_path: Path, tool: Callable[..., Any], model: str, overrides: tuple[str, ...]
) -> None:
    summary = run(tiny(model, "train.steps=2", *overrides))
    assert summary is not None
    assert summary["main_metric"] == "instance_miou"
    assert summary["mixtures"] == ("ewa.num_experts=2" in overrides)
    for name in ("instance_miou", "class_miou", "accuracy"):
        assert all(0 <= summary[f"test_{name}_{which}"] <= 1 for which in ("merged", "unmerged", "merged_best"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 2/2 (epoch 1): validation instance mIoU " in log
    assert "test instance mIoU, last step" in log
    weights = tmp_path / "run" / "checkpoints" / "merged_last.pt"
    assert set(read_checkpoint(weights)) >= {"base_model", "model_state_dict"}  # the official layout of segmenters
    code, out, err = tool("evaluate", weights, "--json", tmp_path / "measured.json")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("sphere", "cube", "torus"))
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["instance_miou"] == summary["test_instance_miou_merged"]


def test_training_learns_the_halves_of_the_toy_shapes(tiny: MakeExperiment, tmp_path: Path) -> None:
    """The labels of other categories do not count, so that chance is one half of the points, and an IoU of a third."""
    easy = ("augment.scale=null", "augment.shift=0", "model.head_dropout=0", "model.drop_path=0")
    rare = ("train.eval_every=15", "train.save_every=30")
    made = tiny("point_mae_segmenter", "train.steps=30", "train.lr=5e-3", "ewa.num_experts=2", *easy, *rare)
    summary = run(made)
    assert summary is not None
    assert summary["test_instance_miou_merged"] > 0.7
    assert summary["test_accuracy_merged"] > 0.8


def test_the_highest_miou_is_the_best(tiny: MakeExperiment, tmp_path: Path) -> None:
    summary = run(tiny("point_mae_segmenter", "train.steps=6", "train.lr=5e-3"))
    assert summary is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["val_instance_miou"] for line in lines if "val_instance_miou" in line}
    assert list(values) == [2, 4, 6]
    assert summary["val_instance_miou_best"] == max(values.values()) == values[summary["best_step"]]


def test_a_step_that_is_done_again_is_the_same(tiny: MakeExperiment) -> None:
    made = tiny("point_mae_segmenter", "ewa.num_experts=2")
    weights = []
    for _ in range(2):
        setup = build(made, WORLD)
        train_step(setup, made, WORLD, setup.model, 5)
        torch.rand(3)
        weights.append(torch.cat([p.detach().flatten() for p in setup.model.parameters()]))
    assert torch.equal(*weights)


def test_it_starts_from_pretrained_weights(tiny: MakeExperiment, tmp_path: Path) -> None:
    run(tiny("point_mae", "train.steps=2", "model.depth=3", f"output={tmp_path}/pretrained"))
    weights = tmp_path / "pretrained" / "checkpoints" / "merged_last.pt"
    setup = build(tiny("point_mae_segmenter", f"init_from={weights}", "ewa.num_experts=3"), WORLD)
    file = read_checkpoint(weights)["base_model"]
    (mixture,) = expert_layers(setup.model).values()
    for expert in mixture.get_parameter("experts.fc1.weight"):
        assert torch.equal(expert, file["MAE_encoder.blocks.blocks.1.mlp.fc1.weight"])
    assert torch.equal(setup.model.get_parameter("norm.weight"), file["MAE_encoder.norm.weight"])
    assert any(all(part in note for part in ("convs1", "label_conv", "MAE_decoder")) for note in setup.notes)


def refused(made: Experiment) -> str:
    with pytest.raises(DataError) as caught:
        run(made)
    assert "\n" not in str(caught.value)
    assert not Path(made.output).exists()
    return str(caught.value)


def test_data_without_parts_is_refused_before_training(tiny: MakeExperiment, toy_file: Path) -> None:
    message = refused(tiny("point_mae_segmenter", f"data.path={toy_file}"))
    assert message == "toy has no parts; choose a dataset for segmentation, such as shapenetpart"


def test_a_checkpoint_of_fewer_parts_than_the_data_has_is_told_in_one_line(
    tiny: MakeExperiment, toy_parts_file: Path, tmp_path: Path, tool: Callable[..., Any]
) -> None:
    run(tiny("point_mae_segmenter", "train.steps=1"))
    path = tmp_path / "more.h5"
    path.write_bytes(toy_parts_file.read_bytes())
    with h5py.File(path, "a") as file:
        file["part"][0, 0] = 9
    code, _, err = tool("evaluate", tmp_path / "run" / "checkpoints" / "merged_last.pt", f"data.path={path}")
    assert (code, err) == (2, "error: the checkpoint knows 6 parts, hdf5 has 10\n")


def test_a_class_without_shapes_is_refused_before_training(tiny: MakeExperiment, tmp_path: Path) -> None:
    """Of a file whose class has none to train on, as for any task."""
    path = tmp_path / "absent.h5"
    points = torch.rand(8, 64, 3).numpy()
    write_hdf5(path, points, [0, 1] * 4, ["a", "b"], up_axis="y", split=[0] * 6 + [1] * 2)
    with h5py.File(path, "a") as file:
        file.attrs["class_names"] = json.dumps(["a", "b", "c"])
        file["part"] = torch.zeros(8, 64, dtype=torch.uint8).numpy()
    assert "no training shape of: c" in refused(tiny("point_mae_segmenter", f"data.path={path}"))


def test_a_cloud_smaller_than_the_levels_is_refused_before_training(tiny: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.levels=\(49, 16\) is above data\.num_points=48; lower it$"):
        run(tiny("point_bert_segmenter", "model.levels=[49, 16]"))
    assert os.listdir(tmp_path) == []
