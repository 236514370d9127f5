"""The command `pc-ewa`: help, examples, mistakes, and the scripts in tools/ over it."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import pc_ewa
from pc_ewa import cli, package
from pc_ewa.cli.command import Parser, command
from pc_ewa.config import load_experiment
from pc_ewa.errors import Error

Tool = Callable[..., Any]
REPOSITORY = Path(__file__).parent.parent.parent
SCRIPTS = sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py"))


def parser_of(name: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """The parser that reads these arguments of a command, and those that it reads."""
    create = import_module(f"pc_ewa.cli.{name}").create_parser
    if name == "benchmark" and arguments and arguments[0] != "--help":
        return create(arguments[0]), arguments[1:]
    return create(), arguments


def examples(text: str) -> list[list[str]]:
    """Every pc-ewa command in a text, as a shell would split it; $seed is 0."""
    lines = re.findall(r"^ *pc-ewa (.*)", text.replace("\\\n", " "), flags=re.MULTILINE)
    return [shlex.split(line.replace("$seed", "0"), comments=True) for line in lines]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.MULTILINE)
    assert cli.main([]) == 0
    assert capsys.readouterr().out == out
    assert {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")} == {*cli.COMMANDS, "command"}
    for name, *arguments in examples(out):
        parser, rest = parser_of(name, arguments)
        parser.parse_intermixed_args(rest)


def test_the_version_is_the_one_of_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pc-ewa {pc_ewa.__version__}\n"
    assert f'\nversion = "{pc_ewa.__version__}"\n' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_explains_itself_with_examples_that_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of an example are real, its config is there, and the keys that it changes are."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    found = examples(out.partition("\nexamples:\n")[2])
    assert any(example[0] == name for example in found)
    for other, *arguments in found:
        parser, rest = parser_of(other, arguments)
        options = parser.parse_intermixed_args(rest)
        if getattr(options, "config", None):
            load_experiment(options.config, getattr(options, "overrides", []))


@pytest.mark.parametrize("what", ["step", "ops", "data", "reliability"])
def test_each_benchmark_explains_itself(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["benchmark", what, "--help"])
    assert f"usage: pc-ewa benchmark {what} " in capsys.readouterr().out


def test_help_comes_at_once() -> None:
    """Nothing heavy is imported for it."""
    code = """
import sys
from pc_ewa import cli
for command in cli.COMMANDS:
    try:
        cli.main([command, "--help"])
    except SystemExit:
        pass
print(*(name for name in ("torch", "numpy", "h5py", "yaml", "pydantic") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr == "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["--verson"], "unknown command '--verson'"),
        (["train"], "the following arguments are required: config; see pc-ewa train --help"),
        (["train", "quickstart", "--chek"], "unrecognized arguments: --chek; see pc-ewa train --help"),
        (["train", "quikstart"], "quikstart is not a file, nor the name of a bundled config; choose quickstart, "),
        (["train", "finetune/modelnet4"], "choose finetune/modelnet40, "),
        (["evaluate", "last.pt", "--votes", "many"], "--votes: invalid int value: 'many'; see pc-ewa evaluate --help"),
        (["evaluate", "last.pt", "--protocol", "svn"], "--protocol: invalid choice: 'svn'"),
        (["benchmark"], "the following arguments are required: what; see pc-ewa benchmark --help"),
        (["benchmark", "opps"], "what: invalid choice: 'opps'"),
        (["info", "more"], "unrecognized arguments: more; see pc-ewa info --help"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_configs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file that is there goes first."""
    monkeypatch.chdir(tmp_path)
    quickstart = load_experiment("quickstart")
    assert quickstart.output == "runs/quickstart"
    assert load_experiment("quickstart.yaml") == load_experiment("configs/quickstart.yaml") == quickstart
    assert load_experiment("finetune/modelnet40").data.name == "modelnet40"
    (tmp_path / "quickstart").write_text((REPOSITORY / "configs" / "quickstart.yaml").read_text() + "\nseed: 5\n")
    assert load_experiment("quickstart").seed == 5


def test_the_formats_to_merge_into_are_those_that_can_be_written() -> None:
    from pc_ewa.models.checkpoints.write import WeightsFormat

    assert get_args(import_module("pc_ewa.cli.merge").Format) == get_args(WeightsFormat)


def test_info_says_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/none")
    assert cli.main(["info", "--root", str(tmp_path)]) == 0
    rows = dict(re.findall(r"^(\w\S*(?: \S+)*?)  +(.+)$", capsys.readouterr().out, re.MULTILINE))
    assert rows["pc-ewa"].startswith(f"{pc_ewa.__version__}, a checkout at ")
    for module in (*package.CORE, *package.OPTIONAL):
        assert rows[module] == package.version_of(module) or "not installed: pip install" in rows[module]
    assert {"platform", "CPU", "ops on cpu", "kernels", "bundled"} <= rows.keys()
    assert "no C++ compiler (/none not found)" in rows["compiler"]
    assert rows["sweethome3d"].startswith("ready")
    assert rows["modelnet40"] == "absent"


def test_the_command_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert package.command() == ".venv/bin/python -m pc_ewa"
    (folder / "pc-ewa").touch(0o755)
    assert package.command() == ".venv/bin/pc-ewa"
    monkeypatch.chdir("/usr")
    assert package.command() == f"{folder}/pc-ewa"
    monkeypatch.setenv("PATH", str(folder))
    assert package.command() == "pc-ewa"
    other = tmp_path / "other"
    other.mkdir()
    (other / "pc-ewa").touch(0o755)
    monkeypatch.setenv("PATH", f"{other}:{folder}")
    assert package.command() == f"{folder}/pc-ewa"


# A package that is not installed.


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["train", "quickstart"], "h5py", "pc-ewa[train]"),
        (["prepare", "--list"], "h5py", "pc-ewa[data]"),
        (["train", "quickstart"], "torch", "pc-ewa"),
    ],
)
def test_a_missing_package_is_one_line_with_the_extra_that_brings_it(
    arguments: list[str], missing: str, extra: str, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import pc_ewa.cli; sys.exit(pc_ewa.cli.main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: pc-ewa {arguments[0]} needs {missing}, which is not installed: ")
    remedies = (f"pip install '{extra}'", "source .venv/bin/activate", "bash tools/run_train.sh makes")
    assert any(remedy in done.stderr for remedy in remedies)


def test_outside_of_its_environment_a_clone_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remedy(module: str) -> str:
        error = package.missing_package(ModuleNotFoundError(name=module), "pc-ewa train", "train")
        return str(error).rpartition(": ")[2]

    monkeypatch.setattr(package, "checkout", lambda: tmp_path)
    assert remedy("wandb") == "pip install 'pc-ewa[train]'"
    assert remedy("torch") == f"bash {tmp_path}/tools/run_train.sh makes an environment that has it"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    assert remedy("wandb") == f"source {tmp_path}/.venv/bin/activate"
    monkeypatch.chdir(tmp_path)
    assert remedy("wandb") == remedy("torch.nn") == "source .venv/bin/activate"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert remedy("wandb") == "pip install 'pc-ewa[train]'"
    assert remedy("torch") == "pip install 'pc-ewa'"


def test_an_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As that of a system, which may start a script in tools/."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    assert cli.main(["info"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: pc-ewa needs Python 3\.10 or newer, and this is 3\.9\.6: .+\n", err)


def test_a_missing_module_of_ours_keeps_its_traceback() -> None:
    @command("train", extra="train")
    def main(arguments: Any = None) -> None:
        import_module("pc_ewa.no_such_module")

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main()


def test_a_missing_package_is_told_to_who_imports_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_h5py(name: str) -> Any:
        if name == "pc_ewa.data":
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")
        return import_module(name)

    monkeypatch.delitem(vars(pc_ewa), "load_dataset", raising=False)
    monkeypatch.setattr(pc_ewa, "import_module", without_h5py)
    with pytest.raises(Error, match=r"pc_ewa.load_dataset needs h5py, which is not installed: "):
        _ = pc_ewa.load_dataset


def test_an_argument_without_help_is_refused() -> None:
    with pytest.raises(TypeError, match="help"):
        Parser(prog="p", description="d").add_argument("name")  # type: ignore[call-arg]


# The scripts in tools/.


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_a_command(name: str, tool: Tool) -> None:
    text = (REPOSITORY / "tools" / f"{name}.py").read_text()
    (used,) = re.findall(r"from pc_ewa.cli.(\w+) import main", text)
    assert len([line for line in text.splitlines() if line]) <= 8
    code, out, err = tool(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pc-ewa {used} ")


def test_a_script_finds_the_package_beside_it(tmp_path: Path) -> None:
    """Also with a Python that has nothing of ours installed: what is missing is one line."""
    code = f"""
import runpy, sys
sys.modules["torch"] = None
sys.path[:] = [path for path in sys.path if "site-packages" not in path and {str(REPOSITORY)!r} not in path]
sys.argv = ["evaluate.py", "random", "--config", "quickstart"]
runpy.run_path({str(REPOSITORY / "tools" / "evaluate.py")!r}, run_name="__main__")
"""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: pc-ewa evaluate needs \w+, which is not installed: .*\n", done.stderr)
