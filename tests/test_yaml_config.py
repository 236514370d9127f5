"""YAML that no config should be, and plain values that hold each other: one line, at once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pc_ewa.config import Experiment, load_experiment, resolve
from pc_ewa.errors import ConfigError

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice in .* line 1"),
        ("train: {lr: 1, lr: 2}", "key 'lr' is given twice"),
        ("train: {lr: 1", "YAML: while parsing a flow mapping .* line 1"),
        ("train:\n\tlr: 1", r"YAML: .*'\\t' .*line 2"),
        ("a: 1\n---\nb: 2", "YAML: expected a single document"),
        ("? [a]\n: 1", "YAML: .* unhashable key"),
        ("a: !!python/object/apply:os.system [ls]", "YAML: could not determine a constructor"),
        ("\0", "YAML: unacceptable character"),
        ("", "holds nothing; expected keys and values"),
        ("- a\n- b\n", "holds a list; expected keys and values"),
        ("just words", "holds a str; expected keys and values"),
        ("1: 2", "1=1: Keys should be strings"),
        ("seed: 1", "'data' is missing; set it; 'model' is missing; set it"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(path)
    assert "\n" not in str(caught.value)


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 3000 + "]" * 3000, "{a: " * 3000 + "1" + "}" * 3000, BOMB, "a: &x [*x]", f"a: {'9' * 5000}"],
    ids=["deep list", "deep mapping", "aliases", "alias to itself", "5000 digits"],
)
def test_what_would_take_all_memory_or_time_is_refused_at_once(tmp_path: Path, toy_config: Path, text: str) -> None:
    path = tmp_path / "huge.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path} is not YAML: ")
    assert "\n" not in str(caught.value)
    value = text.partition(": ")[2]
    if "\n" not in text:
        with pytest.raises(ConfigError, match="not YAML"):
            load_experiment(toy_config, [f"wandb.project={value}"])
    assert time.process_time() - began < 2


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match=r"YAML: .*can't decode"):
        load_experiment(tmp_path / "binary.yaml")


def test_a_missing_file_names_those_beside_it_or_bundled_ones(tmp_path: Path, toy_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"top\.yaml is not a file; there are .*toy\.yaml"):
        load_experiment(toy_config.with_name("top.yaml"))
    with pytest.raises(ConfigError, match=r"a\.yaml is not a file.* bundled.* quickstart"):
        load_experiment(tmp_path / "nowhere" / "a.yaml")


def test_an_override_changes_one_section_also_where_yaml_repeats_another(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text("data: &here {name: modelnet40}\nprobe: {data: *here}\nmodel: {name: point_mae}\n")
    experiment = load_experiment(path, ["data.num_points=512"])
    assert (experiment.data.num_points, experiment.probe.data.num_points) == (512, 1024)


@pytest.mark.parametrize("key", ["wandb.project", "model.dim", "anything"])
def test_values_of_a_checkpoint_that_hold_each_other_are_refused_at_once(experiment: MakeExperiment, key: str) -> None:
    """YAML writes aliases out; a pickle may hold the same list ten times, ten levels deep."""
    bomb: list[Any] = ["x"] * 10
    for _ in range(9):
        bomb = [bomb] * 10
    content = experiment().model_dump(mode="json")
    *sections, last = key.split(".")
    place = content[sections[0]] if sections else content
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (bomb, endless, deep):
        place[last] = value
        with pytest.raises(ConfigError, match="more than"):
            resolve(content)
