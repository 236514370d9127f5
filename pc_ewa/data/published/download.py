"""Download of files from mirrors. A broken download is resumed, and a file is checked before it gets its name.

A file that comes by http must match a SHA-256; an MD5 does not suffice, because it can be forged. Without a SHA-256, no
http mirror replaces an https one, and no redirect from https to http is followed.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from tqdm import tqdm

from pc_ewa.data.formats.text_files import one_line
from pc_ewa.errors import DataError
from pc_ewa.text import printable

# Bytes written at a time, and the most that a broken connection loses.
_CHUNK = 2**16
# Bytes of any file, against a server that sends without end.
_LIMIT = 2**37
_UNPROTECTED = "is http where https is required, and no SHA-256 is known to check the file"


class _MirrorError(Exception):
    """A mirror cannot deliver the file; the message says why."""


class _BrokenError(_MirrorError):
    """A broken connection. The received part is kept, and the same mirror may send the rest."""


class _UnfitError(_MirrorError):
    """A response that does not continue the received part, or that does not end."""


def download(
    urls: Sequence[str], target: Path, *, digests: Sequence[str], timeout: float = 30.0, attempts: int = 5
) -> Path:
    """Download a file from the first mirror that delivers it. Received data is kept in `target.part` and resumed.

    Args:
        urls: mirrors of http or https, tried in order. Without a SHA-256, http is used only if no mirror has https.
        target: the file to create. An existing file is checked, and nothing is downloaded.
        digests: accepted digests such as "md5:0cc1..." or "sha256:9f86..."; one match suffices, as mirrors may differ.
        timeout: seconds without data after which a connection counts as broken.
        attempts: attempts at each mirror, for a broken connection or a part that does not fit.

    Raises:
        DataError: no mirror delivers the file, with the reason of each; the existing file does not match; or the
            folder cannot be written.
    """
    part, reasons = target.with_name(f"{target.name}.part"), []
    try:
        if target.exists():
            if defect := _defect(target, digests):
                raise DataError(f"{target} {defect}; move it away, and get it again")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        # In a shared folder, somebody else could have made it a link to a file of ours, which we would overwrite.
        if part.is_symlink():
            part.unlink()
        only_https = any(_is_https(url) for url in urls) and not _strong(digests)
        for url in urls:
            try:
                if only_https and not _is_https(url):
                    raise _MirrorError(_UNPROTECTED)
                _fetch(url, part, digests, timeout, attempts)
                return part.replace(target)
            except _MirrorError as error:
                reasons.append(f"{url}: {error}")
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}; choose a folder that is writable and has space") from error
    listed = "".join(letter if letter.isprintable() else "?" for letter in "; ".join(reasons))
    remedy = f"try again later, which resumes, or download it with a browser to {target}"
    expected = f"expected: {' or '.join(digests)}"
    raise DataError(f"cannot download {target.name}: {listed or 'no mirror is known'}; {remedy} ({expected})")


def _fetch(url: str, part: Path, digests: Sequence[str], timeout: float, attempts: int) -> None:
    """Download the whole file from one mirror.

    The digest is checked at the end. A part needs no record of its mirror: if it belongs to another file, the digest
    fails, and the whole file is downloaded again.
    """
    reason, strong = "not tried", _strong(digests)
    for attempt in range(1, attempts + 1):
        have = part.stat().st_size if part.exists() else 0
        try:
            protected = _receive(url, part, have, timeout, may_downgrade=bool(strong))
        except _BrokenError as error:
            reason = f"{error} (attempt {attempt})"
            continue
        except _UnfitError as error:
            reason = str(error)
        else:
            if not (defect := _defect(part, digests if protected else strong or digests)):
                return
            reason = f"what it sent {defect}"
        part.unlink(missing_ok=True)
        # The whole file came from this mirror in this attempt, so another attempt would bring the same file.
        if not have:
            break
    raise _MirrorError(reason)


def _receive(url: str, part: Path, have: int, timeout: float, *, may_downgrade: bool) -> bool:
    """Append the rest of the file, or write all of it if the mirror does not support ranges.

    Returns:
        True if every hop of the redirects was https.
    """
    import requests
    import urllib3

    # "identity", because the range and the digest count the bytes of the file and not of a compressed transfer.
    headers = {"User-Agent": "pc-ewa", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    # requests calls the hook on each response before it follows the redirect.
    hooks = {} if may_downgrade else {"response": _refuse_downgrade}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout, hooks=hooks) as response:
            continued = response.status_code == 206
            # Range not satisfiable: the received part is as long as the mirror's file, or longer.
            if response.status_code == 416:
                raise _UnfitError("HTTP 416, refuses to resume")
            if response.status_code not in (200, 206):
                raise _MirrorError(f"HTTP {response.status_code} {response.reason}")
            if continued and not re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
                raise _UnfitError("sent a range that was not requested")
            start = have if continued else 0
            total = int(response.headers.get("Content-Length", 0)) + start
            bar = tqdm(
                desc=part.stem,
                total=total or None,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            )
            with bar, part.open("ab" if continued else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    if file.tell() + len(chunk) > _LIMIT:
                        raise _UnfitError(f"sends more than {_LIMIT:,} bytes")
                    file.write(chunk)
                    bar.update(len(chunk))
            return all(_is_https(hop.url) for hop in (*response.history, response))
    # These are subclasses of RequestException too, but another attempt cannot help.
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise _MirrorError(one_line(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise _BrokenError(one_line(error)) from error


def _refuse_downgrade(response: Any, **_: Any) -> None:
    """Refuse a redirect from https to http, before the request to its target."""
    if response.is_redirect and _is_https(response.url):
        target = urljoin(response.url, response.headers["Location"])
        if target.lower().startswith("http:"):
            raise _MirrorError(f"redirects to {printable(target, 100)}, which {_UNPROTECTED}")


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


def _strong(digests: Sequence[str]) -> list[str]:
    """Return the digests that cannot be forged: SHA-256."""
    return [digest for digest in digests if digest.lower().startswith("sha256:")]


def _defect(path: Path, digests: Sequence[str]) -> str | None:
    """Describe why a file matches none of the digests. None means that it matches one."""
    expected = [digest.lower() for digest in digests]
    hashes = {kind: hashlib.new(kind) for kind in sorted({digest.split(":")[0] for digest in expected})}
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for value in hashes.values():
                value.update(chunk)
    found = [f"{name}:{value.hexdigest()}" for name, value in hashes.items()]
    return None if {*found} & {*expected} else f"has {' and '.join(found)}, expected {' or '.join(expected)}"
