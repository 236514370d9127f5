"""The house in order: what importing it costs, who may import whom, and files that must be as they are."""

import inspect
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import pc_ewa

REPOSITORY = Path(__file__).parent.parent


def python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_takes_less_than_two_seconds_and_nothing_heavy(one_thread_environment: dict[str, str]) -> None:
    """In CPU seconds: those of other jobs on the machine do not count."""
    code = """
import sys, time
import pc_ewa
alone, lazy = time.process_time(), "torch" not in sys.modules
import torch
began = time.process_time()
for name in pc_ewa.__all__:
    getattr(pc_ewa, name)
print(alone, time.process_time() - began, lazy, *(name for name in ("wandb", "open3d") if name in sys.modules))
"""
    alone, after_torch, lazy, *heavy = python(code, one_thread_environment).split()
    assert float(alone) < 2
    assert float(after_torch) < 2
    assert lazy == "True"
    assert heavy == []


def test_public_names_are_those_listed() -> None:
    assert set(pc_ewa.__all__) <= set(dir(pc_ewa))
    with pytest.raises(AttributeError, match="no attribute 'upcylce'"):
        pc_ewa.upcylce  # noqa: B018


def test_open3d_imports_and_works(one_thread_environment: dict[str, str]) -> None:
    code = """
import open3d
cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector([[0, 0, 0], [2, 0, 0], [0, 4, 0]]))
print(*cloud.get_axis_aligned_bounding_box().get_extent())
"""
    assert python(code, one_thread_environment) == "2.0 4.0 0.0\n"


def test_the_layers_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert lint_imports(no_cache=True) == 0
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", capsys.readouterr().out)


def test_the_data_home_is_no_package() -> None:
    """It would hide Hugging Face's `datasets`, or be hidden by it."""
    assert list((REPOSITORY / "datasets").rglob("*.py")) == []


def test_torch_comes_first_and_pinned() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert re.match(r"torch==\d+\.\d+\.\d+", names[0])
    assert {re.split("[<>=]", line)[0] for line in names} >= {"torch", "h5py", "open3d", "einops", "wandb"}


def test_no_line_of_gitignore_hides_the_package() -> None:
    """`data/` would hide pc_ewa/data as well; `/data/` does not."""
    patterns = [line for line in (REPOSITORY / ".gitignore").read_text().splitlines() if line and line[0] not in "#!/"]
    folders = ("pc_ewa", "tests", "tools", "configs")
    paths = [path.relative_to(REPOSITORY) for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    kept = [path for path in paths if "__pycache__" not in path.parts]
    assert "pc_ewa/data/clouds.py" in map(str, kept)
    hidden = [path for path in kept if any(fnmatch(part, p.strip("/")) for part in path.parts for p in patterns)]
    assert hidden == []


def test_bundled_data_is_not_ignored() -> None:
    lines = (REPOSITORY / ".gitignore").read_text().splitlines()
    bundled = REPOSITORY / "datasets" / "sweethome3d"
    for path in ("README.md", "ATTRIBUTION.md", "sweethome3d_1024.h5"):
        assert (bundled / path).is_file()
        assert any(fnmatch(f"/datasets/sweethome3d/{path}", line[1:]) for line in lines if line.startswith("!"))


def test_every_public_name_has_a_docstring() -> None:
    names = [(pc_ewa, name) for name in pc_ewa.__all__] + [(pc_ewa.ops, name) for name in pc_ewa.ops.__all__]
    public = [getattr(module, name) for module, name in names]
    for cls in filter(inspect.isclass, list(public)):
        public += [member for name, member in vars(cls).items() if inspect.isfunction(member) and name[0] != "_"]
    assert len(public) > 20
    assert [item for item in public if not inspect.getdoc(item)] == []
