"""The house in order: what importing it costs, who may import whom, and files that must be as they are."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import pc_ewa
from pc_ewa import package

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


def test_the_contracts_know_every_room() -> None:
    """A new module or folder has a place among the layers."""
    layers = re.search(r"layers = \[(.+?)\]", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL)
    assert layers
    rooms = {path.stem for path in (REPOSITORY / "pc_ewa").glob("[!_]*") if path.suffix in ("", ".py")}
    assert rooms == set(re.findall(r"pc_ewa\.(\w+)", layers[1]))


def test_open3d_imports_and_works(one_thread_environment: dict[str, str]) -> None:
    code = """
import open3d
cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector([[0, 0, 0], [2, 0, 0], [0, 4, 0]]))
print(*cloud.get_axis_aligned_bounding_box().get_extent())
"""
    assert python(code, one_thread_environment) == "2.0 4.0 0.0\n"


def test_the_layers_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # it would silence the loggers of later tests
    assert lint_imports(no_cache=True) == 0
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", capsys.readouterr().out)


def test_extras_bring_what_is_imported_and_nothing_else() -> None:
    """Every third-party import is of the core, of an extra, or a rival in a benchmark; none of them is for nothing."""
    imported, rivals = set(), set()
    for path in (REPOSITORY / "pc_ewa").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            (rivals if path.parent.name == "benchmark" else imported).update(name.partition(".")[0] for name in names)
    known = {*package.CORE, *package.OPTIONAL}
    # With pydantic, requests, torch, and by hand.
    comes_along = {"pydantic_core", "urllib3", "triton", "pointnet2_ops"}
    assert imported - set(sys.stdlib_module_names) - {"pc_ewa"} <= known | comes_along
    assert known <= imported | rivals


def test_the_data_home_is_no_package() -> None:
    """It would hide Hugging Face's `datasets`, or be hidden by it."""
    assert list((REPOSITORY / "datasets").rglob("*.py")) == []


def test_every_public_name_has_a_docstring() -> None:
    names = [(pc_ewa, name) for name in pc_ewa.__all__] + [(pc_ewa.ops, name) for name in pc_ewa.ops.__all__]
    public = [getattr(module, name) for module, name in names]
    for cls in filter(inspect.isclass, list(public)):
        public += [member for name, member in vars(cls).items() if inspect.isfunction(member) and name[0] != "_"]
    assert len(public) > 20
    assert [item for item in public if not inspect.getdoc(item)] == []
