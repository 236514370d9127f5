"""Each tool explains itself."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pc_ewa.config import load_experiment

TOOLS = Path(__file__).parent.parent.parent / "tools"
PYTHON_TOOLS = sorted(path.stem for path in TOOLS.glob("*.py"))
SHELL_TOOLS = sorted(TOOLS.glob("*.sh"))


@pytest.mark.parametrize("name", PYTHON_TOOLS)
def test_help_explains_every_option_and_shows_an_example(
    name: str, tool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    parsers: list[argparse.ArgumentParser] = []
    print_help = argparse.ArgumentParser.print_help

    def noted(self: argparse.ArgumentParser, file: Any = None) -> None:
        parsers.append(self)
        print_help(self, file)

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", noted)
    code, out, err = tool(name, "--help")
    assert (code, err) == (0, "")
    assert f"python tools/{name}.py " in re.split("^examples?[: ]", out, flags=re.MULTILINE)[1]
    (parser,) = parsers
    assert parser.description
    for action in parser._actions:
        assert action.help, action
        assert all(option in out for option in action.option_strings)


class Parsed(BaseException):
    """What a parser made of a command line, in place of what the tool would do with it; no tool catches it."""


def examples(text: str) -> list[list[str]]:
    """Every command of this project in a text, as a shell would split it; $seed is 0."""
    lines = re.findall(r"^ *((?:python|bash) tools/.*)", text.replace("\\\n", " "), flags=re.MULTILINE)
    return [shlex.split(line.replace("$seed", "0"), comments=True) for line in lines]


@pytest.mark.parametrize("name", PYTHON_TOOLS)
def test_every_example_is_one_that_the_tools_take(
    name: str, tool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are real, its config is there, and the keys that it changes are."""
    monkeypatch.chdir(TOOLS.parent)
    found = examples(tool(name, "--help").out)
    assert any(command[1] == f"tools/{name}.py" for command in found)
    parse = argparse.ArgumentParser.parse_known_args

    def parsed(self: argparse.ArgumentParser, *arguments: Any) -> Any:
        options, rest = parse(self, *arguments)
        if self.prog.endswith(("step", "ops", "data")):  # a subcommand of tools/benchmark.py
            return options, rest
        raise Parsed(options, rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", parsed)
    for _, script, *arguments in found:
        if script.endswith(".sh"):
            config, *overrides = arguments
        else:
            with pytest.raises(Parsed) as stop:
                tool(Path(script).stem, *arguments)
            options, rest = stop.value.args
            assert not [option for option in rest if option.startswith("-")], arguments
            config, overrides = getattr(options, "config", None), [*getattr(options, "overrides", []), *rest]
        if config and config != "my_config.yaml":
            load_experiment(config, overrides)


def test_the_training_module_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pc_ewa.train", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pc_ewa.train", run_name="__main__")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for part in ("config", "key=value", "--from CHECKPOINT", "--check", "tools/finetune.py", "tools/pretrain.py"):
        assert part in out


@pytest.mark.parametrize("path", SHELL_TOOLS, ids=lambda path: path.name)
def test_shell_scripts_parse(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_run_train_explains_itself_without_setting_anything_up(tmp_path: Path) -> None:
    command = ["bash", str(TOOLS / "run_train.sh"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("run_train.sh [CONFIG.yaml] [key=value ...]", "GPUS=", "NODES=", "NODE_RANK=", "MASTER="):
        assert part in done.stdout
