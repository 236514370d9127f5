"""`pc-ewa train` for every kind of model, and the commands that a run suggests when it is done."""

import os
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pc_ewa import cli
from pc_ewa.train.summary import describe_summary, next_commands

Tool = Callable[..., Any]
Finished = Callable[[str], dict[str, Any]]
KINDS = ("classify", "segment", "pretrain", "tokenize", "point_bert")


@pytest.mark.parametrize("kind", ["classify", "pretrain"])
def test_the_module_trains_any_of_them(
    kind: str, kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m pc_ewa train`, which is what torchrun and tools/run_train.sh start."""

    def train(*more: str) -> int | str | None:
        arguments = [str(kinds[kind]), f"output={tmp_path}/run", "train.steps=1", *more]
        monkeypatch.setattr(sys, "argv", ["pc_ewa", "train", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("pc_ewa", run_name="__main__", alter_sys=False)
        return stop.value.code

    assert train("--check") == 0
    assert not (tmp_path / "run").exists()
    assert train() == 0
    assert (tmp_path / "run" / "checkpoints" / "merged_last.pt").is_file()


def test_it_trains_reports_and_is_finished(tool: Tool, kinds: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("pretrain", kinds["pretrain"], f"output={tmp_path}/run", "train.steps=1")
    code, out, err = tool(*arguments)
    assert (code, err) == (0, "")
    for part in ("test loss, last step", "with experts", "linear SVM on the features, test samples: ", "next:\n"):
        assert part in out
    code, again, err = tool(*arguments)
    assert (code, err) == (0, "")
    assert "is finished" in again
    assert out.partition("with experts")[2] == again.partition("with experts")[2]


def test_it_goes_on_from_other_weights(tool: Tool, kinds: dict[str, Path], finished: Finished, tmp_path: Path) -> None:
    merged = f"{finished('pretrain')['output']}/checkpoints/merged_last.pt"
    code, out, err = tool(
        "pretrain", kinds["pretrain"], "--from", merged, f"output={tmp_path}/run", "train.steps=1", "probe=null"
    )
    assert (code, err) == (0, "")
    report = out.partition(f"weights: {merged}\n")[2]
    (total,) = (line.split() for line in report.splitlines() if line.startswith("total "))
    assert int(total[1]) > 50
    assert total[2:] == ["0", "0"]  # missing, unexpected


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("point_bert", (), "tokenizer is missing: point_bert predicts the tokens of a trained dvae; train one with"),
        ("point_bert", ("tokenizer=none.pt",), "tokenizer=none.pt"),
        ("pretrain", ("tokenizer=none.pt",), "tokenizer=none.pt, but model.name=point_mae"),
        ("tokenize", ("ewa.num_experts=2",), "ewa with model.name=dvae, which has no FFN for experts; set ewa=null"),
        ("pretrain", ("probe.data.path=none.h5",), "none.h5 does not exist"),
    ],
)
def test_what_cannot_be_pretrained_is_one_line(
    tool: Tool, kinds: dict[str, Path], tmp_path: Path, kind: str, overrides: tuple[str, ...], message: str
) -> None:
    code, out, err = tool("pretrain", kinds[kind], f"output={tmp_path}/run", *overrides)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert os.listdir(tmp_path) == []


# What a finished run suggests.


def suggested(summary: dict[str, Any]) -> list[list[str]]:
    """The commands as a shell would split them, by the name that pc-ewa has for them."""
    commands = []
    for line in next_commands(summary):
        assert f"  {line}" in describe_summary(summary).splitlines()
        commands.append(split(line))
    return commands


def split(line: str) -> list[str]:
    """Split a command line of pc-ewa, which may be the path of it, or a Python that runs it as a module."""
    program, *words = shlex.split(line, comments=True)
    assert Path(program).name == "pc-ewa" or words[:2] == ["-m", "pc_ewa"]
    return words if Path(program).name == "pc-ewa" else words[2:]


@pytest.mark.parametrize("kind", KINDS)
def test_every_suggested_command_runs_as_it_is_printed(
    kind: str,
    finished: Finished,
    toy_parts_file: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the toy shapes in place of ModelNet40 and ShapeNet-55; what would train is checked up to its first step."""
    monkeypatch.chdir(repository)
    data = f"data={{name: hdf5, path: {toy_parts_file}, num_points: 48}}"
    for command in suggested(finished(kind)):
        if command[0] == "evaluate":
            more = [f"--json={toy_parts_file.parent}/{kind}.json"]
        elif command[1].startswith(finished(kind)["output"]):  # the run's own config
            more = ["--check"]
        else:
            more = [
                data,
                "train.batch_size=8",
                "device=cpu",
                "--check",
                *(["probe=null"] if "pretrain" in command[1] else []),
            ]
        assert cli.main([*command, *more]) == 0, command


def test_each_kind_gets_the_commands_that_make_sense_for_it(finished: Finished) -> None:
    commands = {kind: suggested(finished(kind)) for kind in KINDS}
    assert {kind: [command[0] for command in some] for kind, some in commands.items()} == {
        "classify": ["evaluate", "train", "train"],
        "segment": ["evaluate", "train", "train"],
        "pretrain": ["evaluate", "train", "train", "train"],
        "tokenize": ["train", "train"],  # no features for an SVM, no FFNs for experts
        "point_bert": ["evaluate", "train", "train", "train"],
    }
    for kind in ("pretrain", "point_bert"):
        svm, tune, *_ = commands[kind]
        merged = f"{finished(kind)['output']}/checkpoints/merged_last.pt"
        assert svm[1:] == [merged, "--protocol", "svm"]
        assert tune[tune.index("--from") + 1] == merged
    tokenizer = commands["tokenize"][0]
    assert "pretrain/point_bert_shapenet55" in tokenizer[1]
    assert f"tokenizer={finished('tokenize')['output']}/checkpoints/merged_last.pt" in tokenizer


def test_suggestions_survive_odd_folders_and_keep_sizes_and_places(
    tool: Tool, kinds: dict[str, Path], tmp_path: Path
) -> None:
    output, root = f"{tmp_path}/my runs/a$b", f"{tmp_path}/my data"
    overrides = (f"output={output}", f"data.root={root}", "train.steps=1", "probe=null", "ewa=null")
    code, out, _ = tool("pretrain", kinds["pretrain"], *overrides, "model.drop_path=0.3")
    assert code == 0
    lines = out.partition("next:\n")[2].splitlines()
    assert len(lines) == 4
    _, tune, rival, _ = map(split, lines)
    assert tune[2:] == [
        "--from",
        f"{output}/checkpoints/merged_last.pt",
        "model.dim=16",
        "model.depth=3",
        "model.num_heads=2",
        "model.num_groups=8",
        "model.group_size=8",
        "model.encoder_width=8",
        f"data.root={root}",
        f"output={output}_point_mae_classifier",
    ]
    assert rival == ["train", f"{output}/config.yaml", "ewa.num_experts=4", f"output={output}_ewa"]
