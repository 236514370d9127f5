"""Every view on toy models: number of panels, colours of points by what they stand for, words of the legend."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.config import Augment
from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval import EvalSettings
from pc_ewa.ewa import Gate, expert_layers, routed_experts, upcycle
from pc_ewa.models.base import Preprocessing
from pc_ewa.models.transformer import Attention
from pc_ewa.train.batches import augment
from pc_ewa.viz import VIEWS, Chart, Picture, Scene, View, show
from pc_ewa.viz.colours import BLUE, DARK, GREEN, KINDS, LIGHT, ORANGE, VERMILION
from pc_ewa.viz.judged import Judgement, judge
from pc_ewa.viz.routes import routes
from pc_ewa.viz.showing import scene_of

SETTINGS = EvalSettings(num_points=32, batch_size=4)
NAMES = ("chair", "lamp", "plant", "sofa", "table")


def toy(count: int = 10, parts: bool = False, classes: int = 5) -> Clouds:
    random = torch.Generator().manual_seed(0)
    points = torch.randn(count, 40, 3, generator=random)
    labels = torch.arange(count) % classes
    each = (2 * labels[:, None] + (points[..., 2] > 0)).to(torch.uint8) if parts else None
    return Clouds(points, None, labels, NAMES[:classes], "z", "toy", parts=each)


def count(colours: Any, colour: tuple[float, float, float]) -> int:
    return int(np.isclose(colours, colour, atol=1e-5).all(1).sum())


def make(name: str, *models: nn.Module, clouds: Clouds | None = None, **given: Any) -> Scene:
    clouds = toy() if clouds is None else clouds
    have = {"clouds": clouds, "training": clouds, "settings": SETTINGS, **dict(zip(["model"], models, strict=False))}
    view = VIEWS[name]
    scene = view.make(**{key: value for key, value in have.items() if key in view.needs} | given)
    assert isinstance(scene, Scene)
    return scene


def test_cloud_reads_files_and_samples_meshes(tmp_path: Any) -> None:
    (tmp_path / "a.xyz").write_text("0 0 0\n0 0 4\n1 0 0\n")
    (tmp_path / "b.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    scene = make("cloud", files=[tmp_path / "a.xyz", tmp_path / "b.off"], points=50)
    assert [panel.title for panel in scene.panels] == ["a.xyz", "b.off"]
    assert [len(panel.points) for panel in scene.panels] == [3, 50]
    heights = scene.panels[0].points[:, 1]
    assert heights[1] == max(heights)
    assert scene.radius == pytest.approx(1, abs=0.05)
    with pytest.raises(ConfigError, match="unknown extension"):
        make("cloud", files=[tmp_path / "a.doc"])
    with pytest.raises(DataError):
        make("cloud", files=[tmp_path / "none.ply"])


def test_classes_is_a_panel_for_each() -> None:
    scene = make("classes", per_class=2)
    assert [panel.title.splitlines()[0] for panel in scene.panels] == [f"{n} (2)" for n in NAMES for _ in range(2)]
    assert scene.grid == (5, 2)
    with pytest.raises(ConfigError, match="per_class=0"):
        make("classes", per_class=0)


def test_augment_keeps_the_colour_of_each_point() -> None:
    change = partial(lambda points, generator: augment(points, Augment(scale=(2, 2), shift=0.0), "z", generator))
    scene = make("augment", augmentation=change, draws=2)
    before, first, second = scene.panels
    np.testing.assert_allclose(first.points, 2 * before.points, rtol=1e-5)
    assert (before.colours == second.colours).all()
    assert scene.grid == (1, 3)


def test_patches_have_the_colour_of_their_nearest_center() -> None:
    model = small("point_mae_classifier")
    panel = make("patches", model, shapes=(4,)).panels[0]
    points, centers = panel.points[:32], panel.points[32:]
    assert len(centers) == model.num_groups
    assert count(panel.colours, DARK) == len(centers)
    assert panel.sizes is not None
    assert (panel.sizes[32:] > 1).all()
    owner = ((points[:, None] - centers[None]) ** 2).sum(-1).argmin(1)
    for patch in range(len(centers)):
        assert len(np.unique(panel.colours[:32][owner == patch], axis=0)) <= 1


def test_reconstruction_of_point_mae_has_what_its_loss_has() -> None:
    model = small("point_mae", mask_ratio=0.5)
    scene = make("reconstruction", model, shapes=(1,))
    whole, visible, rebuilt = scene.panels
    hidden = 4 * 4  # patches times points
    assert (count(whole.colours, LIGHT), count(whole.colours, BLUE)) == (hidden, hidden)
    assert count(visible.colours, BLUE) == len(visible.points) == hidden
    assert (count(rebuilt.colours, BLUE), count(rebuilt.colours, ORANGE)) == (hidden, hidden)
    assert list(scene.legend) == ["visible", "hidden", "predicted"]
    with torch.no_grad():
        output = model.eval()(SETTINGS.present(toy().batch([1])[0])[0])
    predicted = output.outputs["predicted"] + output.outputs["centers"][output.outputs["mask"]][None, :, None]
    shown = rebuilt.points[-hidden:][:, [0, 2, 1]] * [1, -1, 1]  # back to z up
    np.testing.assert_allclose(shown, predicted.flatten(0, 2).numpy(), atol=1e-5)


def test_reconstruction_of_the_dvae_is_coarse_and_fine() -> None:
    scene = make("reconstruction", small("dvae"), shapes=(0, 3))
    assert [len(panel.points) for panel in scene.panels] == [32, 8, 32] * 2
    shown = zip(scene.panels[:3], (BLUE, VERMILION, ORANGE), strict=True)
    assert [count(panel.colours, colour) for panel, colour in shown] == [32, 8, 32]


def test_tokens_marks_right_and_wrong_words() -> None:
    model = small("point_bert")
    scene = make("tokens", model, shapes=(0, 1, 2))
    with torch.no_grad():
        output = model.eval()(SETTINGS.present(toy().batch([0, 1, 2])[0])[0])
    right = round(float(output.terms["token_accuracy"]) * int(output.outputs["mask"].sum()))
    judged = np.concatenate([panel.colours for panel in scene.panels[2::3]])
    assert count(judged, GREEN) == 4 * right
    assert count(judged, GREEN) + count(judged, VERMILION) == 4 * int(output.outputs["mask"].sum())
    assert f"{right} of {int(output.outputs['mask'].sum())}" in scene.title


@pytest.mark.parametrize("partition", ["batch", "sample"])
def test_routes_are_those_that_the_experts_compute_with(partition: str) -> None:
    """Each token's output is that of the expert that the picture shows."""
    model = small("point_mae_classifier").eval()
    upcycle(model, num_experts=3, layers="all", init="independent", partition=partition)
    points = torch.randn(4, 32, 3)
    _, centers = ops.group(points, model.num_groups, model.group_size)
    name, mixture = next(iter(expert_layers(model).items()))
    seen: list[tuple[Tensor, Tensor]] = []
    mixture.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        dealt = routes(model, points, torch.zeros(4, dtype=torch.int64), centers, seed=5)[name]
    assert (torch.random.get_rng_state() == state).all()
    assert dealt.shape == (4, 8)
    tokens, output = seen[0]
    with torch.no_grad(), routed_experts(model):
        every = mixture.experts(tokens.reshape(1, -1, tokens.shape[-1]).expand(3, -1, -1).contiguous())
    each = every.view(3, *tokens.shape)[:, :, 1:]  # without the class token
    wanted = each.gather(0, dealt[None, ..., None].expand(1, -1, -1, tokens.shape[-1]))[0]
    torch.testing.assert_close(output[:, 1:], wanted, rtol=1e-4, atol=1e-5)


def test_experts_colours_every_layer_and_says_which_patches_are_not_dealt() -> None:
    model = small("point_mae")
    upcycle(model, num_experts=2, layers="all")
    scene = make("experts", model, shapes=(0, 1), layers=2)
    assert scene.grid == (2, 2)
    assert [p.title.splitlines()[-1] for p in scene.panels[:2]] == [
        f"MAE_encoder.blocks.blocks.{i}.mlp" for i in (0, 2)
    ]
    assert list(scene.legend) == ["expert 0", "expert 1", "not dealt"]
    for panel in scene.panels:
        assert 0 < count(panel.colours, LIGHT) < 32
        assert count(panel.colours, LIGHT) + count(panel.colours, KINDS[0]) + count(panel.colours, KINDS[1]) == 32


@pytest.mark.parametrize("name", ["point_bert", "point_bert_classifier", "point_mae_segmenter", "point_bert_segmenter"])
def test_experts_of_every_model(name: str) -> None:
    model = small(name)
    upcycle(model, num_experts=2, layers="all")
    assert "not dealt" not in make("experts", model, clouds=toy(classes=3)).legend


def test_experts_of_a_gate_are_those_it_chooses() -> None:
    model = small("point_mae_classifier")
    upcycle(model, num_experts=2, layers="all", gate=Gate())
    first, again = (make("experts", model, seed=seed) for seed in (0, 1))
    assert all((a.colours == b.colours).all() for a, b in zip(first.panels, again.panels, strict=True))
    with pytest.raises(ConfigError, match=r"last\.pt"):
        make("experts", small("point_mae_classifier"))


def test_spread_has_a_line_for_each_mixture() -> None:
    lines = [{"step": s, "ewa/a.mlp/spread": s / 10, "ewa/b.mlp/spread": 0.5, "share_rate": 0.1} for s in (1, 2)]
    chart = VIEWS["spread"].make(metrics=[*lines, {"step": 3, "val_accuracy": 1.0}])
    assert isinstance(chart, Chart)
    assert chart.lines == {"a.mlp": ([1, 2], [0.1, 0.2]), "b.mlp": ([1, 2], [0.5, 0.5])}
    with pytest.raises(ConfigError, match="ewa section"):
        VIEWS["spread"].make(metrics=[{"step": 1}])


def test_attention_is_that_of_the_block() -> None:
    """Where every patch is alike for the class token, all get 1; a model that favours one patch shows it."""
    model = small("point_mae_classifier")
    blocks = [module for module in model.modules() if isinstance(module, Attention)]
    with torch.no_grad():
        blocks[-1].qkv.weight[: 2 * 12] = 0
    scene = make("attention", model, shapes=(0, 1))
    assert len({tuple(colour) for panel in scene.panels for colour in panel.colours}) == 1
    assert "attention 1" in scene.legend
    x = torch.randn(2, 5, 12)
    weights = VIEWS["attention"].make.__globals__["_weights"](blocks[0], x)
    query, key, _ = blocks[0].qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    wanted = (query @ key.transpose(-1, -2) / 2).softmax(-1)[:, :, 0].mean(1)
    torch.testing.assert_close(weights, wanted)
    assert len(make("attention", small("point_bert"), layer=0).panels) == 3
    for model, layer in ((small("point_mae"), 0), (small("point_mae_classifier"), 3)):
        with pytest.raises(ConfigError, match=r"class token|blocks 0 to 2"):
            make("attention", model, layer=layer)


def test_parts_marks_the_points_that_are_wrong() -> None:
    clouds = toy(parts=True, classes=3)
    scene = make("parts", small("point_mae_segmenter"), clouds=clouds, shapes=(0, 2))
    true, predicted, wrong = scene.panels[:3]
    differ = (true.colours != predicted.colours).any(1)
    assert count(wrong.colours, VERMILION) == differ.sum()
    assert wrong.title == f"{differ.sum()} of 32 points wrong"
    assert set(map(tuple, true.colours.round(4))) <= {tuple(np.float32(c).round(4)) for c in KINDS[:2]}
    assert list(scene.legend) == ["part 1", "part 2", "wrong", "right"]
    assert scene.legend["wrong"] == VERMILION
    with pytest.raises(DataError, match="parts"):
        make("parts", small("point_mae_segmenter"), clouds=toy(classes=3))


def test_no_part_has_the_colour_of_what_is_wrong() -> None:
    """Of a category with many parts, too."""
    clouds = toy(parts=True, classes=1)
    clouds = replace(clouds, parts=(torch.arange(40) % 7).to(torch.uint8).expand(10, 40).contiguous())
    scene = make("parts", small("point_mae_segmenter", num_categories=1, num_parts=7), clouds=clouds, shapes=(0,))
    assert len({tuple(colour) for colour in scene.panels[0].colours}) == 7
    assert count(scene.panels[0].colours, VERMILION) == 0


def test_mistakes_are_the_most_certain_ones() -> None:
    model = small("point_mae_classifier")
    judged = judge(model, toy(), SETTINGS)
    assert model.training
    wrong = judged.mistakes()
    assert [m.probability for m in wrong] == sorted((m.probability for m in wrong), reverse=True)
    assert len(wrong) + len(judged.hits()) == 10
    assert judged.accuracy.correct == len(judged.hits())
    scene = make("mistakes", model, count=3)
    assert scene.grid == (2, 3)
    first = wrong[0]
    assert scene.panels[0].title == f"{NAMES[first.true]} taken for\n{NAMES[first.predicted]}, {first.probability:.0%}"
    # The training shapes are the same here: each is nearest to itself.
    np.testing.assert_allclose(scene.panels[0].points, scene.panels[3].points)
    with pytest.raises(ConfigError, match="classifier"):
        make("mistakes", small("point_mae"))


def test_no_mistake_is_said() -> None:
    perfect = Judgement(torch.eye(5)[toy().labels], toy().labels, NAMES)
    assert perfect.mistakes() == []
    assert perfect.accuracy.overall == 1


@pytest.mark.parametrize("shapes", [(), (10,), (-1,), (0, 99)])
def test_shapes_that_are_not_there_are_refused(shapes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="from 0 to 9"):
        make("patches", small("point_mae"), shapes=shapes)


def test_show_chooses_the_view(tmp_path: Any) -> None:
    points = torch.randn(2, 32, 3)
    titles = {name: scene_of(small(name), points).title for name in ("point_mae", "dvae", "point_bert")}
    assert [title.split(":")[0] for title in titles.values()] == ["Point-MAE", "dVAE", "Point-BERT"]
    assert "attention" in scene_of(small("point_mae_classifier"), points[0]).title
    assert "patches" in scene_of(small("point_mae_segmenter"), points).title
    assert len(scene_of(toy(), [1, 2]).panels) == 2
    assert len(scene_of(toy(), np.int64(3)).panels) == 1
    assert scene_of(small("dvae"), points.double().numpy()).title == titles["dvae"]
    toy().show(3, path=tmp_path / "x.png", renderer="matplotlib")
    small("point_mae").show(points, path=tmp_path / "y.svg")
    show(scene_of(toy()), path=tmp_path / "z.pdf")
    assert len(list(tmp_path.iterdir())) == 3
    for what, shapes, view in ((small("dvae"), 0, None), (3, 0, None), (small("dvae"), points, "mistakes")):
        with pytest.raises(ConfigError):
            scene_of(what, shapes, view)


def test_options_of_a_view_are_checked_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"layr.*layer"):
        scene_of(small("point_mae_classifier"), torch.randn(32, 3), layr=1)


def test_a_trained_model_gets_clouds_as_in_training() -> None:
    model = small("point_mae_segmenter")
    model.preprocessing = Preprocessing(num_points=16, up_axis="z")
    panel = scene_of(model, 100 * torch.randn(1, 40, 3)).panels[0]
    assert len(panel.points) == 16 + model.num_groups
    assert np.linalg.norm(panel.points, axis=1).max() <= 1.001


def test_a_new_view_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any) -> None:
    """`pc-ewa show` lists and draws it, with its options checked."""
    from pc_ewa.cli import show as command

    def first(clouds: Clouds, *, shape: int = 0) -> Picture:
        return scene_of(clouds, shape)

    monkeypatch.setitem(VIEWS, "first", View("the first shape", first))
    assert command.main(["--list"]) == 0
    assert "first          the first shape\n               shape=0" in capsys.readouterr().out
    arguments = ["first", "sweethome3d", "-o", str(tmp_path / "x.svg")]
    assert command.main([*arguments, "shape=2"]) == 0
    assert "table" in (tmp_path / "x.svg").read_text() or (tmp_path / "x.svg").is_file()
    assert command.main([*arguments, "shape=many"]) == 2
    assert "show.shape" in capsys.readouterr().err
