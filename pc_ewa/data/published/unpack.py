"""Unpack the archive of a dataset: all of it or nothing.

Only archives with a digest in their dataset's record are ever unpacked, after `download` has checked it: also one that
was placed by hand. So the standard library's own protection suffices: no member leaves the folder.
"""

import platform
import re
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from pc_ewa.data.formats.text_files import one_line
from pc_ewa.errors import DataError


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip, tar or tar.gz file; its format is seen from its contents.

    All goes to a temporary folder, renamed when it is whole: an archive of one folder to `folder/<that folder>`, any
    other one to `folder/<its name without suffix>`.

    Args:
        archive: the file.
        folder: where to, made when missing.

    Returns:
        The folder that was made.

    Raises:
        DataError: a damaged archive, a member that leads outside, a folder that is there already or cannot be written.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
        content = temporary / "content"  # with the usual permissions, which mkdtemp does not give
        content.mkdir()
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(content)
        else:
            if not hasattr(tarfile, "data_filter"):  # of Python 3.10.12 and 3.11.4, not of Debian 12's 3.11.2
                raise DataError(
                    f"cannot unpack {archive}: Python {platform.python_version()} does not check where files of a tar "
                    f"archive lead; use 3.11.4 or newer, or unpack it into {folder} yourself"
                )
            with tarfile.open(archive) as tar:
                tar.extractall(content, filter="data")  # refuses what leads outside, and devices
        return _place(archive, content, folder)
    except DataError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and tarfile raise almost anything
        remedy = f"get a fresh copy, and see that {folder} is writable and has space"
        raise DataError(f"cannot unpack {archive}: {one_line(error)}; {remedy}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _place(archive: Path, content: Path, folder: Path) -> Path:
    """Give what was unpacked its name."""
    found = [path for path in content.iterdir() if path.name != "__MACOSX" and not path.name.startswith("._")]
    if not found:
        raise DataError(f"{archive}: there is nothing in it; get a fresh copy")
    name = re.sub(r"(\.zip|\.tgz|\.tar|\.tar\.gz)$", "", archive.name, flags=re.IGNORECASE)
    made, target = content, folder / name
    if len(found) == 1 and found[0].is_dir():
        made, target = found[0], folder / found[0].name
    if target.exists() or target.is_symlink():
        raise DataError(f"{archive}: it unpacks to {target}, which is there already; move that away")
    made.rename(target)
    return target
