"""The Hugging Face Hub: a saved folder from there, and to there. Nothing else of ours uses the network for models."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from pc_ewa.errors import CheckpointError
from pc_ewa.inference.folder import CARD, CONFIG, WEIGHTS, save_pretrained
from pc_ewa.package import missing_package


def download(repo: str, revision: str | None = None) -> Path:
    """Download a saved folder, or find it in the cache of the Hub.

    Args:
        repo: "owner/name".
        revision: a branch, tag or commit; None for the newest.

    Raises:
        CheckpointError: no such repository, no network, no package huggingface_hub, or a repository of something else.
    """
    snapshot_download = _hub(
        f"{repo!r} is not a file or a folder here; as a repository of the Hub it"
    ).snapshot_download
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except Exception as error:  # the hub, its cache and the network raise errors of a dozen kinds
        raise CheckpointError(
            f"{repo!r} is not a file or a folder here, and the Hub does not give it: {_one_line(error)}; check the "
            "name, or the network"
        ) from None
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{repo} on the Hub has no {CONFIG}: pc_ewa.save_pretrained did not write it")
    return folder


def push_to_hub(model: nn.Module, repo: str, *, private: bool = False, token: str | None = None, **options: Any) -> str:
    """Upload what `save_pretrained` writes, as one commit.

    Args:
        model: as for `save_pretrained`.
        repo: "owner/name"; made if it is not there.
        private: of a repository that is made.
        token: of the Hub; None for that of `hf auth login`.
        options: those of `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: as `save_pretrained`, or whatever the Hub refuses.
    """
    hub = _hub("push_to_hub")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder) / "model", repo=repo, **options)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=Path(folder) / "model"))
        except Exception as error:  # as above
            raise CheckpointError(f"the Hub does not take {repo!r}: {_one_line(error)}") from None


def _hub(user: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise missing_package(error, user, "hub") or error from None
    return huggingface_hub


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
