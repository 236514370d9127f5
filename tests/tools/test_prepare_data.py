"""`pc-ewa prepare`: from a server, a folder or the user's own shapes to a file that loads."""

import dataclasses
import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pc_ewa.data import DATASETS
from pc_ewa.data.clouds import Clouds
from pc_ewa.data.dataset import Archive, Dataset
from pc_ewa.data.hdf5 import read_hdf5
from pc_ewa.data.prepare import listed
from pc_ewa.data.published.find import open_source
from pc_ewa.data.source import Item, Sample, Source
from pc_ewa.errors import DataError

Tool = Callable[..., Any]


def read(path: Path) -> Sample:
    try:
        return Sample(np.loadtxt(path, np.float32, ndmin=2))
    except ValueError as error:
        raise DataError(f"{path}: {error}; remove it") from error


def published(size: str, folder: Path) -> Source | None:
    """The format of the toy dataset: {train,test}/class/*.txt."""
    home = next((place for place in (folder, folder / "toy_files") if (place / "train").is_dir()), None)
    if home is None:
        return None
    items = [
        Item(path.stem, ["cat", "dog"].index(path.parent.name), path.parts[-3], partial(read, path))
        for path in sorted(home.rglob("*.txt"))
    ]
    return Source("toy", items[: 3 if size == "small" else None], ("cat", "dog"), "z", "CC0")


def source(folder: Path, *, size: Literal["all", "small"] = "all", fold: int = 0) -> Source:
    return open_source("toy", folder, [partial(published, size)])


def toy_zip() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for i, name in enumerate(("train/cat/a", "train/dog/b", "test/cat/c", "test/dog/d", "train/dog/e")):
            lines = np.random.RandomState(i).uniform(-1, 1, (20, 3))
            # A ZipInfo has a fixed date: the bytes, and so the digest, do not depend on the clock.
            file = zipfile.ZipInfo(f"toy_files/{name}.txt")
            archive.writestr(file, "\n".join(" ".join(map(str, line)) for line in lines))
    return memory.getvalue()


def load(split: str, root: Path) -> Clouds:
    return read_hdf5(root / "toy" / "toy.h5", split, name="toy")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The toy dataset, without an archive."""
    made = Dataset(
        "toy",
        load,
        source,
        title="Toy: a toy",
        licence="CC0",
        terms="Be kind: https://example.org",
        manual="ask a friend",
    )
    monkeypatch.setitem(DATASETS, "toy", made)
    return made


@pytest.fixture
def server(toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve the toy dataset; the list is of the requests."""
    monkeypatch.setenv("no_proxy", "*")
    folder, requests = tmp_path / "served", []
    folder.mkdir()
    (folder / "toy.zip").write_bytes(toy_zip())

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            requests.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    urls = tuple(f"http://127.0.0.1:{http.server_address[1]}/{name}" for name in ("dead.zip", "toy.zip"))
    digest = f"md5:{hashlib.md5(toy_zip()).hexdigest()}"
    archive = Archive("toy.zip", urls, size=len(toy_zip()), digests=(digest,))
    monkeypatch.setitem(DATASETS, "toy", dataclasses.replace(toy, archives=(archive,)))
    yield requests
    http.shutdown()
    thread.join()
    http.server_close()


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Let a user sit there who answers."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    def reply(question: str) -> str:
        print(question)
        if not answer:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)


def test_from_the_server_to_clouds(tool: Tool, server: list[str], tmp_path: Path) -> None:
    root = tmp_path / "data"
    code, out, err = tool("prepare_data", "toy", "--root", root, "--accept")
    assert (code, err) == (0, "")
    assert (
        out
        == f"""\
Toy: a toy
licence: CC0
Be kind: https://example.org

unpacked to {root}/toy/toy_files; once converted, toy.zip and this folder can be removed
{root}/toy/toy.h5: 5 shapes of 20 points, z up
class  train  test
------------------
cat        1     1
dog        2     1
all        3     2

training needs only this file: data.name=toy data.root={root}
"""
    )
    assert server == ["/dead.zip", "/toy.zip"]
    clouds = read_hdf5(root / "toy" / "toy.h5", "train", name="toy")
    assert (clouds.shape_names, clouds.labels.tolist(), clouds.num_points) == (("a", "b", "e"), [0, 1, 1], 20)
    expected = np.random.RandomState(1).uniform(-1, 1, (20, 3))
    assert np.abs(clouds.batch([1])[0][0].numpy() - expected).max() < 1e-4


def test_again(tool: Tool, server: list[str], tmp_path: Path) -> None:
    command = ("prepare_data", "toy", "--root", tmp_path / "data")
    prepared = tmp_path / "data" / "toy" / "toy.h5"
    assert tool(*command, "--accept").code == 0
    assert tool(*command) == (
        0,
        f"{prepared} is there already; nothing to do (--overwrite converts again with these options)\n",
        "",
    )
    before = prepared.stat().st_ino
    code, out, _ = tool(*command, "--overwrite", "--points", 7)  # from the published files, without the server
    assert (code, prepared.stat().st_ino == before, len(server)) == (0, False, 2)
    assert f"{prepared}: 5 shapes of 7 points" in out


@pytest.mark.parametrize("answer", ["", "n", "yess", " "])
def test_no_consent_no_download(
    tool: Tool, server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    terminal(monkeypatch, answer)
    code, out, err = tool("prepare_data", "toy", "--root", tmp_path / "data")
    assert (code, server) == (2, [])
    assert (
        "licence: CC0\nBe kind: https://example.org\n\nDo you consent? Then toy.zip (0 MB) is downloaded. [y/N]" in out
    )
    assert err == "error: nothing was downloaded; --from FOLDER converts a copy of toy that you have\n"
    assert not (tmp_path / "data").exists()


def test_consent_on_a_terminal(tool: Tool, server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, "y")
    assert tool("prepare_data", "toy", "--root", tmp_path / "data").code == 0
    assert server == ["/dead.zip", "/toy.zip"]


def test_without_a_terminal_consent_is_an_option(tool: Tool, server: list[str], tmp_path: Path) -> None:
    code, out, err = tool("prepare_data", "toy", "--root", tmp_path / "data")
    assert (code, server) == (2, [])
    assert out.startswith("Toy: a toy\nlicence: CC0\nBe kind")
    assert err == "error: to download toy you must consent to its terms: read them above, then add --accept\n"


def test_an_archive_placed_by_hand(tool: Tool, server: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.zip").write_bytes(toy_zip()[:-1])
    code, _, err = tool("prepare_data", "toy", "--root", tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{folder}/toy.zip has" in err
    (folder / "toy.zip").write_bytes(toy_zip())
    assert tool("prepare_data", "toy", "--root", tmp_path / "data").code == 0
    assert server == []


def test_files_of_another_make_are_named_and_not_replaced(tool: Tool, server: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "toy"
    (folder / "toy_files").mkdir(parents=True)
    (folder / "toy_files" / "mine").write_text("mine")
    code, out, err = tool("prepare_data", "toy", "--root", tmp_path / "data", "--accept")
    assert code == 2
    assert f"the files in {folder} cannot be used: {folder} holds no toy in any published format" in out
    assert f"it unpacks to {folder}/toy_files, which is there already; move that away" in err
    assert (folder / "toy_files" / "mine").read_text() == "mine"


def test_dead_mirrors(tool: Tool, server: list[str], tmp_path: Path) -> None:
    (tmp_path / "served" / "toy.zip").unlink()
    code, _, err = tool("prepare_data", "toy", "--root", tmp_path / "data", "--accept")
    assert (code, err.count("\n")) == (2, 1)
    assert err.count("HTTP 404 File not found") == 2
    assert f"with a browser to {tmp_path}/data/toy/toy.zip (expected: md5:" in err
    assert err.endswith("or by hand: ask a friend\n")


def test_from_a_folder_with_options(tool: Tool, toy: Dataset, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(toy_zip())) as archive:
        archive.extractall(tmp_path / "mine")
    command = ("prepare_data", "toy", "--root", tmp_path / "data", "--from", tmp_path / "mine")
    code, _, err = tool(*command, "siez=small")
    assert (code, err) == (2, "error: unknown key 'dataset toy.siez'; did you mean 'size'?\n")
    assert "'all' or 'small'" in tool(*command, "size=no").err
    assert "'size' is not an option; write key=value" in tool(*command, "size").err
    assert "are not YAML" in tool(*command, "size=[").err
    assert "unknown archive" in tool("prepare_data", "modelnet40", "--root", tmp_path, "--archive", "x", "--accept").err
    code, out, _ = tool(*command, "size=all", "fold=3")
    assert code == 0
    assert f"data.name=toy data.root={tmp_path}/data data.size=all data.fold=3" in out
    (tmp_path / "mine" / "toy_files" / "train" / "cat" / "a.txt").write_text("1 2\n3")
    code, _, err = tool(*command, "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "a.txt" in err
    code, _, err = tool("prepare_data", "toy", "--root", tmp_path / "data", "--from", tmp_path / "none", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)


def test_the_prepared_file_is_where_the_module_says(
    tool: Tool, server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dataclasses.replace(DATASETS["toy"], file_name=lambda *, size, fold: f"toy_{size}_{fold}.h5")
    monkeypatch.setitem(DATASETS, "toy", named)
    assert tool("prepare_data", "toy", "fold=2", "--root", tmp_path / "data", "--accept").code == 0
    assert (tmp_path / "data" / "toy" / "toy_all_2.h5").is_file()


def test_by_hand_only(tool: Tool, toy: Dataset, tmp_path: Path) -> None:
    code, out, err = tool("prepare_data", "toy", "--root", tmp_path, "--accept")
    assert (code, err) == (2, "error: no program can download toy: ask a friend\n")
    assert "Be kind" in out


def test_the_list(tool: Tool, server: list[str], tmp_path: Path) -> None:
    def state() -> str:
        code, out, err = tool("prepare_data", "--list", "--root", tmp_path)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        column = lines[0].index(f"in {tmp_path}")
        assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines[2:])
        assert [line.split()[0] for line in lines[2:]] == list(listed())
        return lines[-1][column:]

    assert state() == "absent"
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    (folder / "toy.zip.part").write_text("")
    assert state() == "absent"
    (folder / "other").write_text("")
    assert state().startswith("not usable: ")
    assert tool("prepare_data", "toy", "--root", tmp_path, "--accept").code == 0
    assert state() == "ready: toy.h5"
    (folder / "toy.h5").unlink()
    assert state() == "published files, 5 shapes: prepare them to load faster"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which dataset? Choose from modelnet40, "),
        (["modelnet4"], "unknown dataset 'modelnet4'; did you mean 'modelnet40'?"),
        (["sweethome3d"], "there is nothing to prepare: it comes with"),
        (["files", "-o", "a.h5"], "give one folder and an output"),
        (["files", "a"], "give one folder and an output"),
        (["files", "none", "-o", "a.h5", "--seed", "-1"], "--seed is -1; choose one from 0 to 4294967295"),
        (["files", "none", "-o", "a.h5"], "none"),
    ],
)
def test_wrong_use_is_one_line(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tool("prepare_data", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []
    assert tool("prepare_data", "toy", "--points", "0").code == 2


def test_an_output_is_for_own_files(tool: Tool, tmp_path: Path) -> None:
    result = tool("prepare_data", "modelnet40", "-o", "mine.h5", "--root", tmp_path)
    assert result.code == 2
    assert result.err.startswith("error: -o is for files; modelnet40 goes to its folder in --root")
