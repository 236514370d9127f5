"""docs/choosing.md: its code and commands work, and each figure is in the place of the evidence that it links to."""

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

import pc_ewa
from pc_ewa.config import load_experiment

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "choosing.md").read_text()
LINES = re.split(r"\n(?=\d+\. )", PAGE.partition("\nThat is:")[0])[1:]
ROWS = re.findall(r"^\| (?!setting|---).*", PAGE, re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """The text below each heading up to the next of its level or above, by the anchor that GitHub gives it."""
    lines, found, within = (DOCS / page).read_text().splitlines(), {}, False
    for number, line in enumerate(lines):
        within ^= line.startswith("```")
        if within or not (heading := re.match(r"(#+) (.*)", line)):
            continue
        anchor = re.sub(r"[^\w\- ]", "", heading[2].lower()).replace(" ", "-")
        rest = "\n".join(lines[number + 1 :])
        found[anchor] = re.split(rf"^#{{1,{len(heading[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return found


EVIDENCE = {page: sections(page) for page in ("results.md", "theory.md")}


def figures(text: str) -> set[str]:
    """Numbers with a decimal point, a thousands separator or an exponent, without their sign."""
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    return set(re.findall(r"\d+(?:[.,]\d+)+(?:e-\d+)?|\de-\d+", plain))


@pytest.mark.parametrize("claim", [*LINES, *ROWS], ids=lambda claim: claim[:40])
def test_each_claim_links_to_its_place_and_has_its_figures_from_there(claim: str) -> None:
    places = re.findall(r"\]\((\w+\.md)#([^)]+)\)", claim)
    assert places
    evidence = "\n".join(EVIDENCE[page][anchor] for page, anchor in places)
    assert figures(claim) - {"1.0"} <= figures(evidence)


def test_ten_lines_come_first_and_begin_with_what_to_expect() -> None:
    assert len(LINES) == 10
    assert "no difference" in LINES[0].lower()


def test_the_code_runs_and_its_settings_are_the_defaults() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"torch": torch, "dense_lr": 1e-3, "total_steps": 4}
    names["model"] = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    exec(compile(code, "choosing.md", "exec"), names)
    assert names["averager"].share_rate_at(3) == pytest.approx(0.3)
    for call in (pc_ewa.upcycle, pc_ewa.ExpertAverager):
        (arguments,) = re.findall(rf"{call.__name__}\(model, (.*?)\)", code)
        for key, value in re.findall(r"(\w+)=([^,]+)", arguments):
            default = inspect.signature(call).parameters[key].default
            assert key == "total_steps" or value.strip('"') == str(default), key


def test_the_settings_are_those_there_are_with_their_defaults() -> None:
    known = {**inspect.signature(pc_ewa.upcycle).parameters, **inspect.signature(pc_ewa.ExpertAverager).parameters}
    found = {name: default.strip('`"') for name, default in re.findall(r"^\| `(\w+)` \| (\S+)", PAGE, re.MULTILINE)}
    assert len(found) >= 8
    assert found == {name: str(known[name].default).replace("None", "none") for name in found}


def test_the_commands_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        _, name, *arguments = shlex.split(line)
        options = import_module(f"pc_ewa.cli.{name}").create_parser().parse_intermixed_args(arguments)
        if name == "train":
            load_experiment(options.config, options.overrides)
    assert "configs/compare/furniture.yaml" in block
    assert (DOCS.parent / "configs/compare/furniture.yaml").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/any-vit.md", "docs/own-data.md"])
def test_the_page_is_linked(page: str) -> None:
    assert "choosing.md)" in (DOCS.parent / page).read_text()
