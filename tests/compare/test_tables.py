"""docs/tables.py: the tables of the docs come from the JSON files, and a stale page is found."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
RESULTS = {
    "title": "Digits",
    "main_metric": "accuracy",
    "higher_is_better": True,
    "baseline": "dense",
    "command": "python examples/digits.py",
    "date": "2026-01-31",
    "hardware": "an abacus",
    "seeds": [0, 1],
    "variants": {
        "dense": {"title": "dense", "scores": {"merged": {"0": 0.5, "1": 0.51}}},
        "ewa": {"title": "EWA", "scores": {"merged": {"0": 0.6, "1": 0.61}}},
    },
}


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., int]:
    """The tool on a small repository of its own."""
    spec = importlib.util.spec_from_file_location("docs_tables", REPOSITORY / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "digits.json").write_text(json.dumps(RESULTS))
    (tmp_path / "docs" / "results" / "digits.png").write_bytes(b"")
    (tmp_path / "README.md").write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    (tmp_path / "docs" / "results.md").write_text("# R\n<!-- table digits -->\n<!-- /table -->\nend")

    def call(*arguments: str, root: Path = tmp_path) -> int:
        try:
            return int(module.main([*arguments], root))
        except SystemExit as stop:
            return int(str(stop.code))

    return call


def test_stale_pages_are_found_written_and_then_fresh(
    tables: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    before = readme.read_text()
    assert tables("--check") == 1
    assert "README.md is stale: run python docs/tables.py" in capsys.readouterr().out
    assert readme.read_text() == before
    assert tables() == 0
    first = readme.read_text(), page.read_text()
    assert first[0].startswith("before\n<!-- results -->\n| experiment")
    assert first[0].endswith("<!-- /results -->\nafter\n")
    assert "old" not in first[0]
    assert "`python examples/digits.py`; seeds 0, 1; 2026-01-31; an abacus" in first[1]
    assert "+10.0 points on each of 2 seeds: no interval" in first[1]
    assert "![Digits: curves](results/digits.png)" in first[1]
    assert tables("--check") == 0
    assert tables() == 0
    assert (readme.read_text(), page.read_text()) == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table digts -->\n<!-- /table -->", "unknown README.md: table 'digts'; did you mean 'digits'?"),
        ("<!-- results -->\nand no end", "README.md: <!-- results ... --> and <!-- /results --> do not match"),
    ],
)
def test_a_wrong_marker_is_one_line(
    tables: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "README.md").write_text(text)
    assert tables() == 2
    assert message in capsys.readouterr().err


def test_the_pages_of_the_repository_are_fresh(tables: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert (tables("--check", root=REPOSITORY), *capsys.readouterr()) == (0, "", "")
