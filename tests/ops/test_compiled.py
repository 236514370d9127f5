"""Where the compiled kernels come from: the cache, a wheel, or a compiler; and what happens without one."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pc_ewa import ops
from pc_ewa.ops import compiled, dispatch

pytestmark = pytest.mark.usefixtures("needs_compiler")
library = compiled.library.__wrapped__  # as a new process calls it


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a source that compiles at once."""
    source = tmp_path / "csrc"
    source.mkdir()
    (source / "kernels.cpp").write_text('extern "C" int bytes() { return sizeof(SCALAR); }\n')
    monkeypatch.setattr(compiled, "SOURCES", source)
    monkeypatch.setattr(compiled, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled._source_hash.cache_clear()
    yield tmp_path / "pc_ewa"
    compiled._source_hash.cache_clear()


def test_compiles_once_and_keeps_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library("float").bytes() == 4
    assert library("double").bytes() == 8
    kept = sorted(cache.iterdir())
    assert len(kept) == 2
    assert stat.S_IMODE(cache.stat().st_mode) & 0o022 == 0, "nobody else may put a library there"
    monkeypatch.setattr(compiled, "compile_library", None)
    assert library("float").bytes() == 4
    assert sorted(cache.iterdir()) == kept


def test_processes_that_start_together(cache: Path) -> None:
    code = f"""
import runpy
from pathlib import Path
names = runpy.run_path({compiled.__file__!r})
names["library"].__wrapped__.__globals__["SOURCES"] = Path({str(compiled.SOURCES)!r})
print(names["library"]("double").bytes())
"""
    run = [subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate()[0] for process in run] == ["8\n"] * 6
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_library_is_made_anew(cache: Path) -> None:
    library("float")
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for damage in (b"", b"no library", whole[:-4000], whole[:3000] + bytes(1000) + whole[4000:]):
        kept.unlink()  # or this process would see it change under its feet
        kept.write_bytes(damage)
        assert library("float").bytes() == 4
        assert kept.read_bytes() == whole
        assert list(cache.iterdir()) == [kept]


def test_a_home_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    assert library("float").bytes() == 4


@pytest.mark.parametrize("loose", ["folder", "file", "link", "foreign folder", "foreign file"])
def test_a_library_that_others_could_have_put_there_is_not_loaded(
    cache: Path, loose: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library("float")
    (kept,) = cache.iterdir()
    if loose == "link":
        elsewhere = tmp_path / "elsewhere.so"
        kept.rename(elsewhere)
        kept.symlink_to(elsewhere)
    elif loose.startswith("foreign"):
        target = cache if loose == "foreign folder" else kept
        if os.geteuid() == 0:
            os.chown(target, 12345, -1)
        else:  # as it looks to somebody else
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        (cache if loose == "folder" else kept).chmod(0o777)
    loaded = []
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda path: loaded.append((path, compiled.is_private(Path(path)))))
    library("float")
    ((path, private),) = loaded
    assert private
    assert loose in ("file", "link", "foreign file") or not path.startswith(str(cache))


def test_a_cache_without_an_absolute_path_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a user without a home has: `~/.cache` itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert library("float").bytes() == 4
    assert not (tmp_path / "cache").exists()


def test_a_changed_source_another_compiler_or_cpu_has_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint, compiler = compiled._fingerprint, compiled.find_compiler()
    names = [fingerprint("float", compiler), fingerprint("double", compiler), fingerprint("float", (*compiler, "-g"))]
    assert fingerprint("float", compiler) == names[0]
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "cpu_flags", lambda: frozenset({"neon"}))
        names.append(fingerprint("float", compiler))
    (compiled.SOURCES / "more.h").write_text("// changed\n")
    compiled._source_hash.cache_clear()
    names.append(fingerprint("float", compiler))
    assert len(set(names)) == 5


def test_a_library_of_a_wheel_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "cpu_flags", lambda: frozenset({"sse2"}))
    compiled.PREBUILT.mkdir()
    path = compiled.prebuilt_path("double", "x86-64")
    compiled.compile_library("double", compiled.find_compiler(), path, None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library("double").bytes() == 8
    # Not one for a CPU that can do more, nor one of an older source.
    path.rename(compiled.prebuilt_path("double", "x86-64-v4"))
    with pytest.raises(compiled.UnavailableError, match="no C\\+\\+ compiler"):
        library("double")
    (compiled.SOURCES / "kernels.cpp").write_text("changed")
    compiled.prebuilt_path("double", "x86-64-v4").rename(path)
    compiled._source_hash.cache_clear()
    with pytest.raises(compiled.UnavailableError, match="no C\\+\\+ compiler"):
        library("double")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler -O3", r"no C\+\+ compiler \(no-such-compiler -O3 not found\); install one for speed"),
        ("false", "/false failed: exit code 1"),
        ("'", "CXX=' "),
    ],
)
def test_no_compiler_and_one_that_fails(
    compiler: str, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(compiled.UnavailableError, match=reason):
        library("float")


def test_an_error_in_the_source_is_named(cache: Path) -> None:
    (compiled.SOURCES / "kernels.cpp").write_text("nonsense\n")
    with pytest.raises(compiled.UnavailableError, match=r"failed: .*kernels.cpp:1:1: error: .*nonsense"):
        library("float")


@pytest.fixture
def as_a_new_process() -> Iterator[None]:
    """Choose the backend and load the kernels anew, before and after."""
    cached = (dispatch._choose, compiled.library)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_without_a_compiler_the_reference_runs_and_says_why_once(
    cache: Path, as_a_new_process: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setenv("PC_EWA_OPS", "auto")
    points = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 2.0]]])
    for _ in range(2):
        assert ops.farthest_point_sample(points, 3).tolist() == [[0, 2, 3]]
    reason = "no C++ compiler (none not found); install one for speed"
    assert caplog.messages == [f"point-cloud ops on cpu: reference (cpu: {reason})"]
