"""The recipes in configs/: they resolve as they are and as their headers suggest, and say what the papers say."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers
from pc_ewa.models import create_model
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.setup import check_initial_weights, put_experts

REPOSITORY = Path(__file__).parent.parent
FILES = sorted((REPOSITORY / "configs").rglob("*.yaml"))
CONFIGS = {path.stem: path for path in FILES if path.parent.name != "compare"}  # those are tests/compare's
RECIPES = [name for name, path in CONFIGS.items() if path.parent.name in ("pretrain", "finetune")]
PAPERS = [name for name in RECIPES if not name.endswith("_small")]

# So narrow that every model takes milliseconds; what decides that points fit stays as it is.
NARROW = {
    **{"dim": 24, "depth": 3, "num_heads": 3, "encoder_width": 8, "encoder_dim": 8, "decoder_depth": 1},
    **{"num_tokens": 16, "tokens_dim": 8, "decoder_dim": 8, "graph_width": 4, "decoder_width": 8, "contrast_dim": 8},
}


def header(name: str) -> list[str]:
    """Comment lines of a config below the one for editors, without what marks them."""
    lines = CONFIGS[name].read_text().splitlines()[1:]
    return [line.lstrip("# ") for line in lines if line.startswith("#")]


def suggested() -> list[tuple[str, list[str]]]:
    """What the headers propose to add to a command, line by line."""
    found = []
    for name in CONFIGS:
        for line in header(name):
            overrides = re.findall(r"(?<![\w./=-])[a-z_]+(?:\.[a-z_]+)*=[^\s)]+", line)
            if overrides:
                found.append((name, [override.rstrip(".,;") for override in overrides]))
    return found


def narrowed(experiment: Experiment) -> nn.Module:
    """The model of an experiment, with its experts, but narrow."""
    arguments = experiment.model.arguments
    small = {key: value for key, value in NARROW.items() if arguments.get(key) is not None}
    model = create_model(experiment.model.name, **arguments | small)
    put_experts(model, experiment)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_resolves_builds_and_takes_experts(name: str) -> None:
    experiment = load_experiment(CONFIGS[name])
    create_objective(experiment)
    assert len(expert_layers(narrowed(experiment))) == (experiment.ewa is not None)
    with_ewa = load_experiment(CONFIGS[name], ["ewa.num_experts=4"])
    assert with_ewa.ewa is not None
    knobs = with_ewa.ewa.arguments
    assert (knobs["num_experts"], knobs["layers"], knobs["init"]) == (4, "every-2", "copy")
    if experiment.model.name == "dvae":
        with pytest.raises(
            ConfigError, match=r"^ewa with model\.name=dvae, which has no FFN for experts; set ewa=null$"
        ):
            check_initial_weights(with_ewa)
    else:
        (mixture,) = expert_layers(narrowed(with_ewa)).values()
        assert mixture.num_experts == 4
    if experiment.train.steps is None:
        official = load_experiment(CONFIGS[name], ["recipe=official"])
        assert official.train == experiment.train
        narrowed(official)


def test_what_headers_suggest_is_found() -> None:
    """That the tests below have something to test."""
    assert ("modelnet40", ["ewa.num_experts=4"]) in suggested()
    assert ("fewshot", ["data.way=5", "data.shot=10", "data.fold=0"]) in suggested()
    assert ("quickstart_finetune", ["init_from=null", "output=runs/scratch"]) in suggested()
    assert len(suggested()) > 30


@pytest.mark.parametrize(("name", "overrides"), suggested(), ids=lambda value: str(value) if value else None)
def test_what_a_header_suggests_resolves_and_builds(name: str, overrides: list[str]) -> None:
    experiment = load_experiment(CONFIGS[name], overrides)
    create_objective(experiment)
    narrowed(experiment)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_that_a_header_names_are_there(name: str) -> None:
    text = "\n".join(header(name))
    for path in re.findall(r"(?:configs|tools|docs)/[\w/]+\.(?:yaml|py|sh|md)", text):
        assert (REPOSITORY / path).is_file(), path
    for run in re.findall(r"runs/(\w+)/checkpoints/merged_last\.pt", text):
        assert run in CONFIGS, run


@pytest.mark.parametrize("name", PAPERS)
def test_headers_say_what_is_reproduced_what_was_published_on_what_and_how_to_add_ewa(name: str) -> None:
    lines = header(name)
    top = " ".join(lines[:2])
    assert re.search(r"Point-MAE|Point-BERT", top)
    assert re.search(r"cfgs/[\w/-]+\.yaml|segmentation/", top), "which of the official configs it is"
    for title in ("published", "hardware", "with EWA", "their quirks"):
        (line,) = (line for line in lines if line.startswith(f"{title}  "))
        assert len(line) > len(title) + 10
    figures = re.findall(r"\d\d\.\d", " ".join(lines))
    assert figures or name == "dvae_shapenet55"
    assert any("recipe=official" in line for line in lines)


@pytest.mark.parametrize("name", sorted({*RECIPES} - {*PAPERS}))
def test_small_recipes_claim_nothing(name: str) -> None:
    text = " ".join(header(name))
    assert "reproduces no published result" in text
    assert re.search(r"with(out)? EWA", text)
    assert "docs/results.md" in text


# peers: lr, weight decay, epochs of warm-up and in all, batch, points, patches x points, stochastic depth, clipping.
SCAN = (5e-4, 0.05, 10, 300, 32, 2048, (128, 32), 0.1, 10.0)
SCAN_BERT = (5e-4, 0.05, 10, 300, 32, 1024, (64, 32), 0.1, 10.0)
PUBLISHED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("point_mae_shapenet55",): (1e-3, 0.05, 10, 300, 128, 1024, (64, 32), 0.1, None),
    ("modelnet40",): (5e-4, 0.05, 10, 300, 32, 1024, (64, 32), 0.1, 10.0),
    ("modelnet40_8k",): (5e-4, 0.05, 10, 300, 32, 8192, (512, 32), 0.1, 10.0),
    ("scanobjectnn_objbg",): SCAN,
    ("scanobjectnn_objonly",): SCAN,
    ("scanobjectnn_hardest",): SCAN,
    ("fewshot",): (5e-4, 0.05, 10, 150, 32, 1024, (64, 32), 0.1, 10.0),
    ("shapenetpart",): (2e-4, 0.05, 10, 300, 16, 2048, (128, 32), 0.1, 10.0),
    ("dvae_shapenet55",): (5e-4, 5e-4, 10, 300, 64, 1024, (64, 32), None, None),
    ("point_bert_shapenet55",): (5e-4, 0.05, 3, 300, 128, 1024, (64, 32), 0.1, None),
    ("modelnet40", "Point-BERT"): (5e-4, 0.05, 10, 300, 32, 1024, (64, 32), 0.1, 10.0),
    ("modelnet40_8k", "Point-BERT"): (5e-4, 0.05, 10, 300, 32, 8192, (512, 32), 0.1, 10.0),
    ("scanobjectnn_objbg", "Point-BERT"): SCAN_BERT,
    ("scanobjectnn_objonly", "Point-BERT"): SCAN_BERT,
    ("scanobjectnn_hardest", "Point-BERT"): SCAN_BERT,
    ("shapenetpart", "Point-BERT"): (5e-4, 0.05, 10, 300, 16, 2048, (128, 32), 0.1, None),
}


def published_experiment(name: str, *line: str) -> Experiment:
    """The experiment of a config, or of the line of its header that begins with a title."""
    overrides = [
        override for title in line for text in header(name) if text.startswith(title) for override in text.split()
    ]
    return load_experiment(CONFIGS[name], [override for override in overrides if "=" in override])


def test_every_recipe_of_a_paper_is_in_the_table() -> None:
    assert {key[0] for key in PUBLISHED} == {*PAPERS}


@pytest.mark.parametrize(("key", "row"), PUBLISHED.items(), ids=[" ".join(key) for key in PUBLISHED])
def test_recipes_have_the_published_numbers(key: tuple[str, ...], row: tuple[Any, ...]) -> None:
    experiment = published_experiment(*key)
    assert experiment.model.name.startswith("point_bert") == (len(key) == 2 or key[0].startswith("point_bert"))
    train, model = experiment.train, experiment.model.arguments
    warm_up = round(train.warmup * train.epochs)
    patches = model["num_groups"], model["group_size"]
    numbers = (train.lr, train.weight_decay, warm_up, train.epochs, train.batch_size, experiment.data.num_points)
    assert (*numbers, patches, model.get("drop_path"), train.clip_grad) == row
    assert (train.min_lr, train.steps, train.accumulate, train.label_smoothing) == (1e-6, None, 1, 0.0)
    assert (train.precision, experiment.recipe, experiment.ewa) == ("fp32", "ours", None)


def test_augmentation_sampling_and_data_are_the_published_ones() -> None:
    made = {name: load_experiment(CONFIGS[name]) for name in PAPERS}
    for name, experiment in made.items():
        augment = experiment.augment
        assert (augment.rotate, augment.jitter) == (False, 0.0)
        how = (augment.scale, augment.shift, augment.isotropic)
        if name == "dvae_shapenet55":
            assert how == (None, 0.0, False)
        elif name == "shapenetpart":
            assert how == ((0.8, 1.25), 0.1, True)
        else:
            assert how == ((2 / 3, 3 / 2), 0.2, False)
        pretraining = name.endswith("shapenet55")
        assert experiment.data.sampling == ("random" if pretraining else "farthest")
        assert experiment.data.normalize == (not name.startswith("scanobjectnn"))
        # All training shapes, and no choice by the test: the last step counts. Pre-training watches its loss on a few.
        assert experiment.data.val_fraction == (0.01 if pretraining else 0)
    assert made["point_bert_shapenet55"].data.arguments["whole"] is True
    assert made["point_mae_shapenet55"].data.arguments["whole"] is False
    assert made["shapenetpart"].data.arguments["trainval"] is True
    variants = [made[f"scanobjectnn_{name}"].data.arguments["variant"] for name in ("objbg", "objonly", "hardest")]
    assert variants == ["obj_bg", "obj_only", "pb_t50_rs"]


def test_what_only_pretraining_has_is_published_too() -> None:
    mae = load_experiment(CONFIGS["point_mae_shapenet55"]).model.arguments
    assert (mae["mask_ratio"], mae["mask_type"], mae["decoder_depth"], mae["loss"]) == (0.6, "rand", 4, "cdl2")
    bert = load_experiment(CONFIGS["point_bert_shapenet55"]).model.arguments
    assert (bert["mask_ratio"], bert["mask_type"], bert["momentum"]) == ((0.25, 0.45), "block", 0.999)
    assert (bert["queue_size"], bert["contrast_temperature"], bert["contrast_dim"]) == (16384, 0.07, 512)
    assert (bert["cutmix_loss"], bert["moco_loss"], bert["live_tokenizer"]) == (True, False, False)
    dvae = load_experiment(CONFIGS["dvae_shapenet55"]).model.arguments
    assert (dvae["temperature"], dvae["temperature_steps"]) == ((1.0, 0.0625), 100_000)
    assert (dvae["kl_weight"], dvae["kl_start"], dvae["kl_steps"]) == (0.1, 10_000, 100_000)
    for key in ("num_tokens", "tokens_dim", "decoder_dim", "encoder_dim"):
        assert bert[key] == dvae[key] == (8192 if key == "num_tokens" else 256)
    for name in PAPERS:
        model = load_experiment(CONFIGS[name]).model.arguments
        if "dim" in model:
            assert (model["dim"], model["depth"], model["num_heads"], model["mlp_ratio"]) == (384, 12, 6, 4.0)


def test_the_small_recipes_and_the_quickstarts_fit_together() -> None:
    """What one pre-trains, the other one loads."""
    pairs = {"quickstart_pretrain": "quickstart_finetune", "point_mae_modelnet40_small": "modelnet40_small"}
    dvae, bert = (load_experiment(CONFIGS[f"quickstart_{name}"]) for name in ("dvae", "point_bert"))
    for key in dvae.model.arguments.keys() & bert.model.arguments.keys():
        assert dvae.model.arguments[key] == bert.model.arguments[key], key
    assert bert.tokenizer == f"{dvae.output}/checkpoints/merged_last.pt"
    for first, second in pairs.items():
        pretrained, tuned = (load_experiment(CONFIGS[name]).model.arguments for name in (first, second))
        for key in ("dim", "depth", "num_heads", "num_groups", "group_size", "encoder_width", "mlp_ratio"):
            assert pretrained[key] == tuned[key], (first, key)
    start = load_experiment(CONFIGS["quickstart_finetune"]).init_from
    assert start == f"{load_experiment(CONFIGS['quickstart_pretrain']).output}/checkpoints/merged_last.pt"
