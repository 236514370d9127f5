"""Download files from mirrors: resumed where a connection broke, and checked before they get their name.

Without a SHA-256 to check the file by, no mirror of http stands in for one of https, and no redirect is followed from
https to http. With one, a file that came by http must fit it: an MD5 does not suffice there.
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

_CHUNK = 2**16  # what is lost at most when a connection breaks
_LIMIT = 2**37  # bytes; more are refused from a server that sends without end
_UNPROTECTED = "is http where https is wanted, and no SHA-256 is known to check the file by"


class _MirrorError(Exception):
    """A mirror cannot deliver the file; the message says why."""


class _BrokenError(_MirrorError):
    """The connection broke: what has arrived is kept, and the same mirror may send the rest."""


class _UnfitError(_MirrorError):
    """The mirror sends something that does not continue the part that has arrived, or that never ends."""


def download(
    urls: Sequence[str], target: Path, *, digests: Sequence[str], timeout: float = 30.0, attempts: int = 5
) -> Path:
    """Get a file from the first mirror that delivers it; what arrives waits in `target.part` and is resumed.

    Args:
        urls: http(s) mirrors, tried in order; those of http only with a SHA-256, unless all are.
        target: the file to make; if it is there it is checked, and nothing is downloaded.
        digests: such as "md5:0cc1..." or "sha256:9f86..."; one that fits suffices, as mirrors may differ.
        timeout: seconds without data until a connection counts as broken.
        attempts: at each mirror, for a connection that breaks or a part that does not fit.

    Raises:
        DataError: no mirror delivers the file, with the reason of each; a file that is there and is another one; a
            folder that cannot be written.
    """
    part, reasons = target.with_name(f"{target.name}.part"), []
    try:
        if target.exists():
            if defect := _defect(target, digests):
                raise DataError(f"{target} {defect}; move it away, and get it again")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.is_symlink():  # that somebody planted under its name
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
    remedy = f"try again later, which resumes, or get it with a browser and put it at {target}"
    expected = f"expected: {' or '.join(digests)}"
    raise DataError(f"cannot download {target.name}: {listed or 'no mirror is known'}; {remedy} ({expected})")


def _fetch(url: str, part: Path, digests: Sequence[str], timeout: float, attempts: int) -> None:
    """Get the whole file from one mirror.

    The digest decides at the end. So a part needs no note of which mirror it is from: if it was of another file, all of
    it is fetched again.
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
        if not have:
            break  # all of it is from this mirror: another try would bring the same
    raise _MirrorError(reason)


def _receive(url: str, part: Path, have: int, timeout: float, *, may_downgrade: bool) -> bool:
    """Append the rest of the file, or write all of it where the mirror does not send parts.

    Returns:
        True if it came by https all the way.
    """
    import requests
    import urllib3

    headers = {"User-Agent": "pc-ewa", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    hooks = {} if may_downgrade else {"response": _refuse_downgrade}  # called before a redirect is followed
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout, hooks=hooks) as response:
            continued = response.status_code == 206
            if response.status_code == 416:  # what has arrived is as long as their file, or longer
                raise _UnfitError("HTTP 416, refuses to resume")
            if response.status_code not in (200, 206):
                raise _MirrorError(f"HTTP {response.status_code} {response.reason}")
            if continued and not re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
                raise _UnfitError("sent a part that was not asked for")
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
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise _MirrorError(one_line(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise _BrokenError(one_line(error)) from error


def _refuse_downgrade(response: Any, **_: Any) -> None:
    """Stop at a redirect from https to http, before anything is asked for there."""
    if response.is_redirect and _is_https(response.url):
        target = urljoin(response.url, response.headers["Location"])
        if target.lower().startswith("http:"):
            raise _MirrorError(f"redirects to {printable(target, 100)}, which {_UNPROTECTED}")


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


def _strong(digests: Sequence[str]) -> list[str]:
    """Return the digests that nobody can make another file for."""
    return [digest for digest in digests if digest.lower().startswith("sha256:")]


def _defect(path: Path, digests: Sequence[str]) -> str | None:
    """Return what is wrong with a file, None if one of the digests fits."""
    expected = [digest.lower() for digest in digests]
    hashes = {kind: hashlib.new(kind) for kind in sorted({digest.split(":")[0] for digest in expected})}
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for value in hashes.values():
                value.update(chunk)
    found = [f"{name}:{value.hexdigest()}" for name, value in hashes.items()]
    return None if {*found} & {*expected} else f"has {' and '.join(found)}, expected {' or '.join(expected)}"
