"""Each tool explains itself."""

import argparse
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
