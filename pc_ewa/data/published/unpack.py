"""Unpacking of the archive of a dataset: all of it or nothing.

`download` has checked the digest of every archive before, including one that was placed by hand. The protection of the
standard library, by which no member leaves the folder, therefore suffices.
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
    """Unpack a zip, tar or tar.gz file, whose format is detected from its contents.

    The archive is unpacked to a temporary folder, which is then renamed. The result is `folder/NAME`: the name of the
    folder in the archive if that is all it contains, else the name of the archive without its suffix.

    Args:
        archive: the archive file.
        folder: the target folder, created if missing.

    Returns:
        The unpacked folder.

    Raises:
        DataError: a damaged archive, a member that leads outside, or a target that exists or cannot be written.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
        # mkdtemp makes folders of mode 0700. A subfolder has the usual permissions and keeps them when renamed.
        content = temporary / "content"
        content.mkdir()
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(content)
        else:
            # Since Python 3.10.12 and 3.11.4; Debian 12 has 3.11.2.
            if not hasattr(tarfile, "data_filter"):
                raise DataError(
                    f"cannot unpack {archive}: Python {platform.python_version()} does not check the paths in a tar "
                    f"archive; use 3.11.4 or newer, or unpack it into {folder} yourself"
                )
            with tarfile.open(archive) as tar:
                # The filter refuses devices and members that lead outside of the folder.
                tar.extractall(content, filter="data")
        return _place(archive, content, folder)
    except DataError:
        raise
    # A damaged archive makes zipfile and tarfile raise almost anything.
    except Exception as error:
        remedy = f"get a fresh copy, and check that {folder} is writable and has space"
        raise DataError(f"cannot unpack {archive}: {one_line(error)}; {remedy}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _place(archive: Path, content: Path, folder: Path) -> Path:
    """Rename the unpacked content to its target, and return the target."""
    # macOS adds "__MACOSX" and "._*" files, which must not hide that the archive has a single folder.
    found = [path for path in content.iterdir() if path.name != "__MACOSX" and not path.name.startswith("._")]
    if not found:
        raise DataError(f"{archive}: it is empty; get a fresh copy")
    name = re.sub(r"(\.zip|\.tgz|\.tar|\.tar\.gz)$", "", archive.name, flags=re.IGNORECASE)
    made, target = content, folder / name
    if len(found) == 1 and found[0].is_dir():
        made, target = found[0], folder / found[0].name
    if target.exists() or target.is_symlink():
        raise DataError(f"{archive}: it unpacks to {target}, which is there already; move that away")
    made.rename(target)
    return target
