"""Repositories of the Hugging Face Hub, by a stand-in of its client."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from saved_models import check_same, made

import pc_ewa
from pc_ewa.errors import CheckpointError, Error


class Hub(SimpleNamespace):
    """Stands in for huggingface_hub: one repository, in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder, asked=[])

    def snapshot_download(self, repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        self.asked.append((repo, revision, sorted(allow_patterns)))
        if repo != "me/shapes":
            raise OSError("Cannot reach https://huggingface.co:\noffline mode is enabled")
        return str(self.folder)

    def HfApi(self, token: str | None = None) -> "Hub":  # noqa: N802, its name
        return self

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        self.asked.append((repo, private))

    def upload_folder(self, repo_id: str, folder_path: Path) -> str:
        if "/" not in repo_id:
            raise ValueError("no namespace")
        self.asked.append(sorted(path.name for path in folder_path.iterdir()))
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(made().save_pretrained(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # a name whose first part is a folder here is not looked up
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_a_repository_of_the_hub_is_a_name(hub: Hub) -> None:
    check_same(pc_ewa.load_model("me/shapes"), made())
    check_same(pc_ewa.from_pretrained("me/shapes", revision="v1"), made())
    files = ["README.md", "config.json", "model.safetensors"]
    assert hub.asked == [("me/shapes", None, files), ("me/shapes", "v1", files)]
    (hub.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        pc_ewa.load_model("me/shapes")


def test_offline_is_one_line_that_names_both_places(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        pc_ewa.load_model("runs/quikstart")
    message = str(caught.value)
    assert "\n" not in message
    for fact in ("runs/quikstart", "not a file or a folder", "offline mode"):
        assert fact in message
    with pytest.raises(CheckpointError, match="offline mode"):
        pc_ewa.load_model("me/vit-1.5")
    asked = len(hub.asked)
    for name in ("me/vit.pt", "scans/chair.PLY"):
        with pytest.raises(CheckpointError, match=name):
            pc_ewa.load_model(name)
    assert len(hub.asked) == asked


def test_pushing_uploads_the_folder(hub: Hub) -> None:
    assert made().push_to_hub("me/other", private=True) == "https://huggingface.co/me/other/commit/1"
    assert hub.asked == [("me/other", True), ["README.md", "config.json", "model.safetensors"]]
    with pytest.raises(CheckpointError, match="'other'"):
        made().push_to_hub("other")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Error, match=r"runs/quikstart.*huggingface_hub.*not installed"):
        pc_ewa.load_model("runs/quikstart")
