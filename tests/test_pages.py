"""README and CONTRIBUTING: their code runs, their commands are those that there are, their promises hold."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from pc_ewa.config import load_experiment

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
INLINE = re.findall(r"`(pc-ewa [^`A-Z]+)`", README)  # "pc-ewa COMMAND" is none
COMMANDS = [shlex.split(line, comments=True) for line in [*re.findall(r"^pc-ewa .*", SHELL, re.MULTILINE), *INLINE]]


@pytest.mark.parametrize("code", PYTHON)
def test_code_of_the_readme_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_of_the_readme_are_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options are real, their configs are there, and so are the keys that they change."""
    monkeypatch.chdir(REPOSITORY)
    _, name, *arguments = words
    create = import_module(f"pc_ewa.cli.{name}").create_parser
    parser = create(arguments.pop(0)) if name == "benchmark" else create()
    options = parser.parse_intermixed_args(arguments)
    if getattr(options, "config", None):
        load_experiment(options.config, getattr(options, "overrides", []))


def test_scripts_of_the_readme_are_there() -> None:
    scripts = re.findall(r"bash (tools/\S+)", README)
    assert len(scripts) >= 2
    assert all((REPOSITORY / script).is_file() for script in scripts)
    for config in re.findall(r"bash tools/run_train\.sh (configs/\S+)", README):
        load_experiment(REPOSITORY / config)


def test_the_spine_is_read_in_an_afternoon() -> None:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    order = re.search(r"### Read it in an afternoon\n(.*?)\n###", page, re.DOTALL)
    assert order
    files = re.findall(r"`(pc_ewa/\S+\.py)`", order[1])
    assert len(files) > 15
    assert sum(len((REPOSITORY / file).read_text().splitlines()) for file in files) < 3600
