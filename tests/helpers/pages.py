"""Code on the pages of the repository: fenced blocks, the commands in them, and what is wrong with a command."""

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pydantic

from pc_ewa.compare.comparison import Comparison
from pc_ewa.config import load_experiment
from pc_ewa.errors import Error
from pc_ewa.yaml_config import apply_overrides, read_yaml

REPOSITORY = Path(__file__).parents[2]
_PROJECT = (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
EXTRAS = set(re.findall(r"^(\w+) = ", _PROJECT.partition("\n\n")[0], re.MULTILINE))
_LEADS = ("do", "done", "export", "nice", "time", "-n")  # words that only lead to a command


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page with a language, indented ones too."""
    text = (REPOSITORY / page).read_text()
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [Block(page, kind, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, kind, code in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, with variables filled in; a loop is taken at its first value."""
    known: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|()"):
                words.append(word)
                continue
            plain = _plain([_filled(each, known) for each in words], known)
            if plain:
                yield plain
            words = []


def _filled(word: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        word = word.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return word


def _plain(words: list[str], known: dict[str, str]) -> list[str]:
    """Leave out what only leads to a command, and remember variables, those of a loop with their first value."""
    while words and (words[0] in _LEADS or re.match(r"[A-Z]\w*=|\d+$", words[0])):
        name, assigned, value = words.pop(0).partition("=")
        if assigned:
            known[name] = value
    if words and words[0] == "for":
        known[words[1]] = words[3]
        return []
    if words and " " in words[0]:  # a variable that stands for several words
        return _plain([*words[0].split(), *words[1:]], known)
    return [each for word in words for each in (word.split() if word.startswith("--") else [word])]


def problem(words: list[str]) -> str | None:
    """Say what is wrong with a command; None if nothing is."""
    try:
        return _problem(words)
    except (Error, pydantic.ValidationError, ModuleNotFoundError, argparse.ArgumentError) as error:
        return str(error)


def _problem(words: list[str]) -> str | None:
    program, *arguments = words
    if program == "pc-ewa":
        return _problem_of_ours(arguments)
    if program == "bash" or (program in ("python", "python3") and arguments[0].endswith(".py")):
        script = REPOSITORY / arguments[0]
        if not script.is_file():
            return f"{arguments[0]} is not there"
        unknown = [word for word in arguments[1:] if word.startswith("--") and word not in script.read_text()]
        if unknown:
            return f"{arguments[0]} has no option {unknown[0]}"
        if arguments[0] == "tools/run_train.sh":
            return _problem_of_ours(["train", *(arguments[1:] or ["quickstart"])])
        return None
    if program == "pip" and arguments[0] == "install":
        named = re.findall(r"^(?:\.|pc-ewa|\S*\.whl)\[(.*)\]$", "\n".join(arguments), re.MULTILINE)
        unknown = [name for names in named for name in names.split(",") if name not in EXTRAS]
        return f"{unknown[0]} is not an extra" if unknown else None
    if program in ("source", "cd", "python", "python3", "pre-commit", "jupyter"):
        return None
    return f"nothing is known of {program}"


def _problem_of_ours(arguments: list[str]) -> str | None:
    """Parse a command of `pc-ewa`, and check the config that it names with all that it changes."""
    name, *rest = ["quickstart" if word == "CONFIG" else word for word in arguments]
    if name in ("--help", "--version"):
        return None
    create = import_module(f"pc_ewa.cli.{name}").create_parser
    parser = create(rest.pop(0)) if name == "benchmark" and rest[0] != "--help" else create()
    if "--help" in rest:
        return None
    options = parser.parse_intermixed_args(rest)
    config, overrides = getattr(options, "config", None), getattr(options, "overrides", [])
    if config:
        load_experiment(config, overrides)
    if name == "compare" and re.match(r"(configs/)?compare/", rest[0]):
        changes = [word for word in rest if re.match(r"\w[\w.]*=", word)]
        # Its variants are resolved by tests/compare.
        Comparison.model_validate(apply_overrides({"output": "runs/x"} | read_yaml(rest[0]), changes))
    return None
