"""Every page of docs/: its commands are those that there are, its Python runs, its links lead somewhere.

A page that is added is held to the same, without a line here.
"""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import REPOSITORY, Block, blocks, commands, problem

import pc_ewa
from pc_ewa import cli
from pc_ewa.yaml_config import parse_yaml

PAGES = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks(page)]
# Pages whose Python is run by a test of their own, which also says more of it.
RUN_ELSEWHERE = {
    "docs/any-vit.md": "tests/integrations/test_page.py",
    "docs/choosing.md": "tests/test_choosing_page.py",
    "docs/own-data.md": "tests/test_own_data_page.py",
}
# Programs that no test may start, and why.
NOT_RUN = {
    **dict.fromkeys(("git", "sed"), "download another project, and change it"),
    **dict.fromkeys(("npm", "docker", "apt-get"), "download"),
    **dict.fromkeys(("torchrun", "srun", "sbatch", "scancel", "ssh", "kubectl", "salloc"), "need a cluster"),
    **dict.fromkeys(("nvidia-smi", "nsys"), "need a GPU"),
    "tensorboard": "serves until it is stopped",
}
# So narrow that every model takes milliseconds.
SMALL = {"dim": 24, "num_heads": 3, "depth": 3, "encoder_width": 8}
CARDS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "datasets").glob("*/README.md"))
SCRIPTS = [block for page in ("CONTRIBUTING.md", *CARDS, *PAGES) for block in blocks(page) if block.kind == "bash"]
COMMANDS = sorted({tuple(words) for block in SCRIPTS for words in commands(block.text)})
INLINE = sorted(
    {
        span
        for page in PAGES
        for span in re.findall(r"`(pc-ewa [^`]+)`", (REPOSITORY / page).read_text())
        if not re.search(r"\.\.\.|\bVIEW\b|<|\bPART\b", span)
    }
)


def test_there_is_something_to_check() -> None:
    assert len(PAGES) > 18
    assert len(COMMANDS) > 80
    assert len(INLINE) > 30
    assert {block.kind for block in BLOCKS} <= {"bash", "bibtex", "python", "yaml"}, (
        "another kind of block; say here what it is"
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_there_is(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are real, its configs and scripts are there, and so are the keys that it changes."""
    monkeypatch.chdir(REPOSITORY)
    if words[0] not in NOT_RUN:
        assert problem(list(words)) is None


@pytest.mark.parametrize("span", INLINE)
def test_every_command_in_a_sentence_is_one_that_there_is(span: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for words in commands(span):
        named = words[1] if len(words) > 1 else ""
        if len(words) == 2 and named in cli.COMMANDS:
            continue  # the name of a command
        assert problem(words) is None


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Any) -> Path:
    """What the code of the pages takes for given: a shape, an official file, a finished run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    model = pc_ewa.create_model("point_mae", decoder_depth=1, **SMALL)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"base_model": state, "epoch": 1}, tmp_path / "pretrain.pth")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(trained.folder)
    return tmp_path


def as_tested(code: str) -> str:
    """The same code on data that is here, with small models; those that have sizes are small already."""
    sizes = ", ".join(f"{key}={value}" for key, value in SMALL.items())
    code = re.sub(r'create_model\("(\w+)"(?=\)|, num_classes=\d+\))', rf'create_model("\1", {sizes}', code)
    return code.replace('"modelnet40"', '"sweethome3d"')


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_the_python_of_each_page_runs_in_its_order(
    page: str, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(as_tested(block.text), page, "exec"), names)


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_are(page: str, test: str) -> None:
    assert Path(page).name in (REPOSITORY / test).read_text()
    assert any(block.kind == "python" for block in blocks(page)), "it has no code; take it out of the list"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "yaml"], ids=lambda block: block.page)
def test_yaml_is_yaml(block: Block) -> None:
    parse_yaml(block.text)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page as GitHub, and our site, make them from its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    path = REPOSITORY / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]+))?\)", text):
        linked = (path.parent / target).resolve() if target else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), f"{target}#{anchor}"


# The site; it is built by tools/build_docs.sh, where any warning is an error


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs/site/api.py"))


@pytest.fixture(scope="module")
def api_pages(api: dict[str, Any]) -> dict[str, str]:
    pages: dict[str, str] = api["pages"]()
    return pages


def test_every_page_is_in_the_list_of_the_site(api_pages: dict[str, str]) -> None:
    nav = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted([*(page.removeprefix("docs/") for page in PAGES), *api_pages])


def test_the_api_has_every_public_name(api: dict[str, Any], api_pages: dict[str, str]) -> None:
    for name in pc_ewa.__all__:
        assert f"[`pc_ewa.{name}`](" in api_pages["api/index.md"], name
    shown = "\n".join(api_pages.values())
    rooms = [path for path in (REPOSITORY / "pc_ewa").glob("*/__init__.py") if "\n__all__ = " in path.read_text()]
    assert len(rooms) > 10
    for path in rooms:
        for name in api["public_names"](path):
            assert f"::: pc_ewa.{path.parent.name}.{name}\n" in shown, f"{path.parent.name}.{name}"


def test_every_extra_of_the_site_is_pinned() -> None:
    lines = (REPOSITORY / "requirements-docs.txt").read_text().splitlines()
    assert all(re.match(r"[\w-]+==[\d.]+( |$)", line) for line in lines if not line.startswith("#"))
