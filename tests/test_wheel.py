"""The wheel and the sdist: what is in them, and what runs where only the wheel and its dependencies are installed.

The environments see the packages that this one has, by links: nothing is downloaded, and nothing is twice on the disk.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest

from pc_ewa import package

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parent.parent
SOURCES = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    *("pc_ewa", "configs", "models", "datasets/sweethome3d"),
)
RUN = (
    *("train.steps=1", "train.batch_size=16", "model.dim=24", "model.depth=2", "model.num_heads=3"),
    *("model.encoder_width=8", "device=cpu", "wandb.mode=disabled"),
)


class Environment:
    """A virtual environment without pip, that has what a wheel brings."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.bin, self.work = folder / "bin", folder.with_name(f"{folder.name} work")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        self.work.mkdir()

    def install(self, wheel: Path, *extras: str) -> None:
        """Unpack a wheel, make its command, and link the packages that it and these extras of it ask for."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        (metadata,) = self.packages.glob("*.dist-info")
        for found in needed(PathDistribution(metadata), set(extras), {}).values():
            place = Path(str(found.locate_file("")))
            for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                if not (self.packages / top).exists():
                    (self.packages / top).symlink_to(place / top)
        script = self.bin / "pc-ewa"
        (point,) = PathDistribution(metadata).entry_points.select(group="console_scripts", name="pc-ewa")
        script.write_text(
            f"#!{self.bin}/python\nimport sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
        )
        script.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in an empty folder."""
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.work,
            env=variables | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def needed(package: Distribution, extras: set[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The distributions that a package and these extras of it require, and what those require."""
    for requirement in package.requires or []:
        name, of, condition = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?[^;]*(?:; *(.*))?", requirement).groups()
        extra = re.search(r"extra == ['\"]([\w-]+)", condition or "")
        if extra and extra[1] not in extras:
            continue
        key = name.lower().replace("_", "-")
        if key == "pc-ewa":
            needed(package, set(of.split(",")), found)
        elif key not in found:
            try:
                found[key] = distribution(name)
            except PackageNotFoundError:  # for another system or Python
                continue
            needed(found[key], set(), found)
    return found


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from: building writes beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def build(source: Path, kind: str, output: Path) -> Path:
    """Build a wheel or an sdist with the backend, without kernels: they compile for half a minute."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=os.environ | {"CXX": "/none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install pc-ewa` makes."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "core")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install pc-ewa[train]` makes."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "full")
    environment.install(wheel, "train")
    return environment


def test_configs_and_furniture_are_in_the_wheel_and_nothing_else_is_new(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    bundled = {name.removeprefix("pc_ewa/bundled/") for name in names if name.startswith("pc_ewa/bundled/")}
    data = {f"datasets/sweethome3d/{name}" for name in ("README.md", "ATTRIBUTION.md", "sweethome3d_1024.h5")}
    data |= {f"models/furniture/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    assert bundled == data | {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.*")}
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "pc_ewa").rglob("*.py")}
    others = {"pc_ewa/py.typed", "pc_ewa/report/page.css", "pc_ewa/report/viewer.js"}
    others |= {"pc_ewa/benchmark/page.md", "pc_ewa/benchmark/reliability.md"}
    others |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "pc_ewa/ops/csrc").glob("[!.]*")}
    assert {name for name in names if "/bundled/" not in name} == sources | others


def test_the_extras_are_those_that_messages_name(wheel: Path, core: Environment) -> None:
    (metadata,) = core.packages.glob("pc_ewa-*.dist-info")
    listed = PathDistribution(metadata)
    names = {"yaml": "PyYAML", "sklearn": "scikit-learn"}
    for module, extra in package.OPTIONAL.items():
        assert any(
            line.startswith(f"{names.get(module, module)}>=") and f'extra == "{extra}"' in line.replace("'", '"')
            for line in listed.requires or []
        ), module
    required = {re.split(r"[<>=; ]", line)[0] for line in listed.requires or [] if "extra" not in line}
    assert required == set(package.CORE)
    extras = {
        "data",
        "train",
        "compare",
        "viz",
        "export",
        "openvino",
        "docs",
        "formats",
        "hub",
        "tensorboard",
        "trainers",
        "all",
    }
    assert set(listed.metadata.get_all("Provides-Extra")) == extras
    assert any(line.startswith("torch>=2.6") for line in listed.requires or []), "a range, never a pin"


def test_an_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(build(source, "sdist", tmp_path), tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build(folder, "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert set(first.namelist()) == set(second.namelist())


def test_the_core_works_without_any_extra(core: Environment) -> None:
    """The README's block for any ViT, and the ops."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    any_vit = next(block for block in blocks if "pc_ewa.merge_experts(model)" in block)
    code = f"""
import pc_ewa.ewa, pc_ewa.ops, pc_ewa.models, sys
{any_vit}
points = torch.rand(2, 256, 3)
print(pc_ewa.__version__, tuple(pc_ewa.ops.farthest_point_sample(points, 8).shape), "site-packages" in pc_ewa.__file__)
print(*(name for name in {list(package.OPTIONAL)} if name in sys.modules))
"""
    done = core.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{package.version()} (2, 8) True\n\n"


def test_the_core_has_the_command_and_names_what_else_it_needs(core: Environment) -> None:
    info = core.run("pc-ewa", "info")
    assert (info.returncode, info.stderr) == (0, "")
    assert re.search(r"^wandb +not installed: pip install 'pc-ewa\[train\]'$", info.stdout, re.MULTILINE)
    assert re.search(r"^datasets +pc_ewa.data needs \w+, .*: pip install 'pc-ewa\[data\]'$", info.stdout, re.MULTILINE)
    for command, extra in (("train", "train"), ("compare", "compare"), ("prepare", "data")):
        done = core.run("pc-ewa", command, "quickstart")
        assert (done.returncode, done.stdout) == (2, "")
        line = rf"error: pc-ewa {command} needs \w+, which is not installed: pip install 'pc-ewa\[{extra}\]'\n"
        assert re.fullmatch(line, done.stderr), done.stderr


def test_the_quickstart_runs_outside_of_a_clone(full: Environment) -> None:
    done = full.run("pc-ewa", "train", "quickstart", *RUN)
    assert (done.returncode, done.stderr) == (0, "")
    assert (full.work / "runs/quickstart/checkpoints/merged_last.pt").is_file()
    done = full.run("pc-ewa", "evaluate", "runs/quickstart/checkpoints/merged_last.pt")
    assert done.returncode == 0, done.stderr
    assert "/154" in done.stdout


def test_the_bundled_model_answers_at_once(full: Environment) -> None:
    rows = "".join(f"{x} {y} {z}\n" for x in range(3) for y in range(3) for z in range(9))
    (full.work / "cloud.xyz").write_text(rows)
    done = full.run("pc-ewa", "predict", "furniture", "cloud.xyz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cloud.xyz  ")
