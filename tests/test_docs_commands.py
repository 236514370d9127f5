"""Every command on the pages runs: those of `pc-ewa` here, in a small clone; the others in tests that are named.

A command that is added to a page runs without a line here. What cannot run here is in NOT_HERE, with the reason.
"""

import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pages import REPOSITORY, blocks, commands
from small_clone import Here, make, named_in, provide
from small_models import small

from pc_ewa import cli
from pc_ewa.cli.train import create_parser
from pc_ewa.config import load_experiment
from pc_ewa.viz.renderers import by_matplotlib

PAGES = ["README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))]
PAGES.remove("docs/own-data.md")  # tests/test_own_data_page.py
# In sentences; tests/test_docs_code.py reads those with a placeholder.
PLACEHOLDER = r"\.\.\.|\bVIEW\b|<|\bPART\b|\bCOMMAND\b|\bCONFIG\b|\bFOLDER\b|\bNAME\b|FILE(?!\.pth)"
# Commands that no test runs as they are on a page; tests that are named run the like, with other files or fewer rounds.
NOT_HERE = {
    r"prepare (modelnet|scanobjectnn|shapenet)": "downloads, or 13 GB by hand: tests/tools/test_prepare_data.py",
    r"benchmark (ops|data|latency|model)": "takes minutes: tests/tools/test_benchmark.py",
    r"benchmark reliability": "takes minutes: tests/tools/test_reliability.py",
    r"export ": "takes up to a quarter of a minute: tests/tools/test_export.py",
    r"compare \S*compare/(modelnet40|furniture_folds)(?!.*--check)": "takes hours: tests/tools/test_compare.py",
    r"train .*train\.compile=": "needs a GPU: tests/train/test_compiled.py",
    r"train .*train\.sharding=": "needs several processes: tests/train/test_sharded.py",
}
# Programs of ours that tests of their own run, and what no test may run.
PROGRAMS = {
    r"python examples/digits_small\.py": "tests/compare/test_digits_small.py",
    r"python examples/theory\.py": "tests/test_examples.py",
    r"python examples/onnx_predict\.py": "tests/tools/test_export.py",
    r"python docs/tables\.py": "tests/compare/test_tables.py",
    r"bash benchmarks/gpu\.sh|python -m pc_ewa\.benchmark\.gpu_page": "tests/tools/test_gpu_benchmark.py",
    r"bash tools/run_tests\.sh": "the test suite itself",
    r"python docs/scaling\.py (measured|data)": "measures for minutes, or writes 6 GB",
    r"pip install ": "installs",
    r"git clone |sed ": "downloads another project, and changes it",
    r"source ": "is of the shell",
    r"sbatch |kubectl ": "needs a cluster: tests/test_cluster_examples.py",
}
# Fewer rounds of what would take longer than it is worth.
FEWER = {
    r"train .* train\.epochs=": ["train.epochs=1"],
    r"train .*=point_bert_segmenter": ["model.levels=[16,12]", "model.encoder_dim=12", "model.encoder_width=8"],
    r"prepare files": ["--points", "64", "--overwrite"],
    r"benchmark step": ["--pairs", "1"],
    r"evaluate .*--protocol fewshot": ["--folds", "1", "--setting", "5x10"],
    r"compare \S*compare/(?!.*--check)": ["--no-costs", "--only", "dense,ewa"],
    r"show classes": ["per_class=1"],
    r"show (augment|patches|reconstruction|tokens|experts|attention|parts) ": ["shapes=[0]"],
    r"show ": ["--side", "64"],
}


def spoken(page: str) -> Iterator[list[str]]:
    """The commands of a page in their order, those in sentences last."""
    for block in blocks(page):
        if block.kind == "bash":
            yield from commands(block.text)
    for span in re.findall(r"`(pc-ewa [^`]+)`", (REPOSITORY / page).read_text()):
        if not re.search(PLACEHOLDER, span):
            yield from (words for words in commands(span) if words[1:] not in [[name] for name in cli.COMMANDS])


def ours(words: list[str]) -> list[str] | None:
    """The arguments of `pc-ewa` that a command comes down to; None if it is another program."""
    if words[:2] == ["bash", "tools/run_train.sh"]:
        return ["train", *(words[2:] or ["quickstart"])]
    return words[1:] if words[0] == "pc-ewa" else None


def run_here() -> dict[str, list[list[str]]]:
    """The commands that run here, each on the first page that has it."""
    pages: dict[str, list[list[str]]] = {}
    seen = set()
    for page in PAGES:
        for arguments in filter(None, map(ours, spoken(page))):
            line = " ".join(arguments)
            same = re.sub(r"configs/|\.yaml| -o \w+\.(png|html)", "", line)
            if same not in seen and not any(re.match(pattern, line) for pattern in NOT_HERE):
                pages.setdefault(page, []).append(arguments)
                seen.add(same)
    return pages


RUN = run_here()
# All commands as one line each, those of tools/run_train.sh as what they start.
LINES = {page: [" ".join(["pc-ewa", *named] if (named := ours(w)) else w) for w in spoken(page)] for page in PAGES}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    make(folder)
    return folder


@pytest.fixture
def workplace(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for what is in the clone, which takes the place of this repository."""
    for path in clone.iterdir():
        if path.name != "given":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pc_ewa.bundled.checkout", lambda: clone)
    in_process = SimpleNamespace(Popen=Here, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("pc_ewa.compare.execute.subprocess", in_process)  # there alone: Popen is of all modules
    # Open3D draws in a process of its own, which takes seconds to import it.
    monkeypatch.setattr("pc_ewa.viz.renderers.by_open3d.draw_scenes", by_matplotlib.draw_scenes)
    return clone


def globbed(words: list[str]) -> list[str]:
    """Fill in `*` as a shell does."""
    return [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_command_runs(page: str, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command, *words in RUN[page]:
        line = " ".join([command, *words])
        arguments = globbed(
            [*words, *(word for pattern, more in FEWER.items() if re.match(pattern, line) for word in more)]
        )
        provide([*arguments, *(named_in(words[0]) if command in ("train", "compare") else [])], workplace)
        if command == "train":  # anew, though an earlier command of the page may have used the same folder
            options = create_parser().parse_intermixed_args(arguments)
            shutil.rmtree(load_experiment(options.config, options.overrides).output, ignore_errors=True)
        capfd.readouterr()
        code = cli.main([command, *arguments])
        out, err = capfd.readouterr()
        assert code == 0, f"pc-ewa {line}: {err or out}"


def test_every_other_program_is_known() -> None:
    """A program that is new on a page is run here or by a test of its own, or it gets a reason why not."""
    for page, lines in LINES.items():
        for line in lines:
            known = line.startswith(("pc-ewa ", "python docs/scaling.py estimated"))
            assert known or any(re.match(pattern, line) for pattern in PROGRAMS), f"{page}: {line}"


@pytest.mark.parametrize(("pattern", "reason"), [*NOT_HERE.items(), *PROGRAMS.items()])
def test_what_does_not_run_here_is_on_a_page_and_its_test_is_there(pattern: str, reason: str) -> None:
    assert any(re.match(f"(pc-ewa )?({pattern})", line) for lines in LINES.values() for line in lines), "take it out"
    for test in re.findall(r"tests/\S+\.py", reason):
        assert (REPOSITORY / test).is_file()


def test_the_estimates_of_scaling_are_computed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(REPOSITORY / "docs/scaling.py"))["main"]
    monkeypatch.setitem(main.__globals__, "create_model", small)  # the official size takes seconds
    main(["estimated"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | GPUs |")
    assert len(rows) == 6 * 2
