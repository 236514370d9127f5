"""tools/setup.sh and the scripts that source it, in environments with a stand-in for pip: nothing is installed."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent.parent / "tools"
SCRIPTS = sorted(TOOLS.glob("*.sh"))
PIN = "2.13.0"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which `pip install` only notes what it was asked for."""
    folder = tmp_path_factory.mktemp("empty") / "environment"
    venv.create(folder)
    pip = packages(folder) / "pip"
    pip.mkdir()
    note = "import sys\nwith open(sys.prefix + '/asked', 'a') as file:\n    print(*sys.argv[1:], file=file)\n"
    (pip / "__main__.py").write_text(note)
    return folder


@pytest.fixture
def environment(empty: Path, tmp_path: Path) -> Path:
    """A fresh one."""
    shutil.copytree(empty, tmp_path / "environment", symlinks=True)
    return tmp_path / "environment"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What setup.sh reads of a clone."""
    return make_clone(tmp_path / "my clone")


def make_clone(folder: Path) -> Path:
    (folder / "tools").mkdir(parents=True)
    for name in ("tools/setup.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(TOOLS.parent / name, folder / name)
    return folder


def packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def add_package(environment: Path, name: str, version: str, editable: Path | None = None) -> None:
    """Metadata as pip writes it."""
    folder = packages(environment) / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if editable is not None:
        origin = {"dir_info": {"editable": True}, "url": editable.as_uri()}
        (folder / "direct_url.json").write_text(json.dumps(origin))


def set_up(clone: Path, environment: Path, *files: str) -> tuple[int, str, str]:
    """Exit code and output of `setup FILES`, as a script that sources setup.sh calls it."""
    script = f"set -euo pipefail; source tools/setup.sh; setup {' '.join(files or ['requirements.txt'])}"
    variables = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(environment)}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_torch_comes_first_by_its_pin_and_the_clone_last_without_dependencies(clone: Path, environment: Path) -> None:
    code, out, err = set_up(clone, environment)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"installing requirements.txt into {environment} (once; about 2 GB and a few minutes)"
    options = "install --disable-pip-version-check --no-compile --quiet"
    asked = (environment / "asked").read_text().splitlines()
    assert asked == [f"{options} torch=={PIN}", f"{options} -r requirements.txt", f"{options} --no-deps -e ."]


def test_a_second_time_nothing_is_installed(clone: Path, environment: Path) -> None:
    set_up(clone, environment)
    (environment / "asked").unlink()
    add_package(environment, "pc-ewa", "0.1.0", editable=clone)
    assert set_up(clone, environment) == (0, "", "")
    assert not (environment / "asked").exists()


@pytest.mark.parametrize(
    ("there", "size"),
    [
        ({"torch": f"{PIN}+cpu", "open3d": "0.20.0"}, ""),
        ({"torch": PIN}, "; about 1 GB and a few minutes"),
        ({"torch": "2.8.0", "open3d": "0.20.0"}, "; about 1 GB and a few minutes"),
    ],
)
def test_how_much_is_installed_is_only_said_when_it_is_true(
    clone: Path, environment: Path, there: dict[str, str], size: str
) -> None:
    for name, version in there.items():
        add_package(environment, name, version)
    code, out, _ = set_up(clone, environment, "requirements.txt", "requirements-dev.txt")
    assert code == 0
    assert out.splitlines()[0] == f"installing requirements.txt requirements-dev.txt into {environment} (once{size})"


def test_the_environment_of_another_clone_is_left_alone(clone: Path, environment: Path, tmp_path: Path) -> None:
    other = make_clone(tmp_path / "other clone")
    add_package(environment, "pc-ewa", "0.1.0", editable=other)
    code, out, err = set_up(clone, environment)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {environment} has the pc-ewa of {other} installed, and this is {clone}; ")
    assert "deactivate" in err
    assert err.count("\n") == 1
    assert not (environment / "asked").exists()


def test_a_clone_that_has_moved_is_no_other(clone: Path, environment: Path) -> None:
    add_package(environment, "pc-ewa", "0.1.0", editable=clone.with_name("gone"))
    assert set_up(clone, environment)[0] == 0
    assert "--no-deps -e ." in (environment / "asked").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NODES": "2", "NODE_RANK": "5", "MASTER": "127.0.0.1"}, "NODE_RANK=5; give 0 to 1"),
        ({"NODES": "2", "NODE_RANK": "x", "MASTER": "127.0.0.1"}, "NODE_RANK=x; give 0 to 1"),
        ({"PORT": "99999"}, "PORT=99999; give a number from 1 to 65535"),
        ({"NODES": "1:2"}, "NODES=1:2 needs MASTER=address of a node that stays"),
        ({"NODES": "4:2", "MASTER": "127.0.0.1"}, "NODES=4:2; give the fewest first"),
        ({"GPUS": "0"}, "GPUS=0; give a whole number from 1 on"),
        ({"RESTARTS": "-1"}, "RESTARTS=-1; give a whole number from 0 on"),
    ],
)
def test_a_wrong_place_among_nodes_is_one_line(repository: Path, variables: dict[str, str], message: str) -> None:
    """Before anything is installed. Torchrun would wait for some of them in silence."""
    command = ["bash", "tools/run_train.sh", "output=never", "train.steps=1"]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (repository / "never").exists()
