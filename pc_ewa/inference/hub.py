"""Download and upload of saved folders at the Hugging Face Hub. No other module uses the network for models."""

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
        revision: a branch, tag or commit. None means the newest.

    Raises:
        CheckpointError: there is no such repository, no network, or the repository is not a saved folder.
        MissingPackageError: huggingface_hub is not installed.
    """
    snapshot_download = _hub(
        f"{repo!r} is not a file or a folder here; as a repository of the Hub it"
    ).snapshot_download
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except Exception as error:  # the Hub, its cache and the network raise many kinds of errors
        raise CheckpointError(
            f"{repo!r} is not a file or a folder here, and cannot be downloaded from the Hub: {_one_line(error)}; "
            "check the name, or the network"
        ) from None
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{repo} on the Hub has no {CONFIG}: pc_ewa.save_pretrained did not write it")
    return folder


def push_to_hub(model: nn.Module, repo: str, *, private: bool = False, token: str | None = None, **options: Any) -> str:
    """Upload the files of `save_pretrained` to the Hugging Face Hub, as one commit.

    Args:
        model: as in `save_pretrained`.
        repo: "owner/name". The repository is created if it does not exist.
        private: make a created repository private.
        token: a token of the Hub. None uses that of `hf auth login`.
        options: options of `save_pretrained`.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: as in `save_pretrained`, or the Hub refuses the upload.
        MissingPackageError: huggingface_hub is not installed.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> len(model.class_names)  # the model card lists them
        18
        >>> pc_ewa.inference.push_to_hub(model, "owner/furniture")  # doctest: +SKIP
        'https://huggingface.co/owner/furniture/commit/...'
    """
    hub = _hub("push_to_hub")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder) / "model", repo=repo, **options)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=Path(folder) / "model"))
        except Exception as error:  # as above
            raise CheckpointError(f"the upload of {repo!r} to the Hub failed: {_one_line(error)}") from None


def _hub(user: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise missing_package(error, user, "hub") or error from None
    return huggingface_hub


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
