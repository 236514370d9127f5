"""Files from mirrors: continued where a connection broke, and checked before they get their name."""

import hashlib
import json
import re
import string
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from tqdm import tqdm

from pc_ewa.errors import DataError

_CHUNK = 2**18
_SLOWEST = 1024  # bytes a second; less over the whole timeout is a stall, or one byte now and then would never end


class _MirrorError(Exception):
    """Why a mirror is of no use."""


class _BrokenError(_MirrorError):
    """The connection broke: what has arrived is good, and the same mirror may send the rest."""


class _Rules(NamedTuple):
    size: int | None
    limit: int
    timeout: float
    redirects: int
    attempts: int


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    digests: Sequence[str] = (),
    limit: int = 2**37,
    timeout: float = 30.0,
    redirects: int = 5,
    attempts: int = 5,
) -> Path:
    """Get a file from the first mirror that delivers it; what arrives waits in `target.part` and is resumed.

    Args:
        urls: http(s) mirrors, tried in order.
        target: the file to make; if it is there it is checked, and nothing is downloaded.
        size: of the file in bytes, if known.
        digests: such as "md5:0cc1..." or "sha256:9f86..."; one that fits suffices, as mirrors may differ.
        limit: bytes, more are refused from a server that does not tell how many it sends.
        timeout: seconds without data, or with less than 1 KiB each, until a connection counts as stalled.
        redirects: followed at most for each mirror, to http(s) only.
        attempts: at each mirror, for a connection that breaks.

    Raises:
        DataError: no mirror delivers the file, with the reason of each; a file that is there and is another one; a
            folder that cannot be written.
    """
    part, rules, reasons = _Part(target), _Rules(size, limit, timeout, redirects, attempts), []
    try:
        if target.exists():
            if not (defect := _defect(target, size, digests)):
                return target
            raise DataError(f"{target} {defect}; move it away, and get it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            try:
                _fetch(url, part, rules)
                if defect := _defect(part.path, size, digests):
                    part.discard()
                    raise _MirrorError(f"what it sent {defect}")
                part.path.replace(target)
                part.discard()
                return target
            except _MirrorError as error:
                reasons.append(f"{url}: {error}")
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}; choose a folder that is writable and has space") from error
    listed = "".join(letter if letter.isprintable() else "?" for letter in "; ".join(reasons))
    expected = f" (expected: {' or '.join(digests)})" if digests else ""
    remedy = f"try again later, which resumes, or get it with a browser and put it at {target}"
    raise DataError(f"cannot download {target.name}: {listed or 'no mirror is known'}; {remedy}{expected}")


class _Part:
    """What has arrived, and a note beside it of where it is from, without which it is not continued."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    def state(self, url: str) -> tuple[int, str, int | None]:
        """Return the number of bytes from this url, the version they are of, and the number there will be."""
        try:
            note = json.loads(self.note.read_bytes())
            version, total, count = note["version"], note["total"], self.path.stat().st_size
            known = note["url"] == url and isinstance(version, str) and version and isinstance(total, int | None)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):  # none, or not as we wrote it
            known = False
        return (count, version, total) if known else (0, "", None)

    def begin(self, url: str, version: str, total: int | None) -> None:
        """Start anew. The order matters: stopped between the two lines, nothing is continued that does not fit."""
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps({"url": url, "version": version, "total": total}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fetch(url: str, part: _Part, rules: _Rules) -> None:
    for attempt in range(1, rules.attempts + 1):
        try:
            return _receive(url, part, rules)
        except _BrokenError as error:
            reason = f"{error} (attempt {attempt})"
    raise _MirrorError(reason)


def _receive(url: str, part: _Part, rules: _Rules) -> None:
    have, version, total = part.state(url)
    if have and have == (total if rules.size is None else rules.size):
        return  # stopped between the last byte and the check
    wanted = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    with _opened(url, {"User-Agent": "pc-ewa", **wanted}, part, rules) as response:
        if response.status == 206:
            _check_continues(response, part, have, version, total)
            bound = _bound(total, rules)
        elif response.status == 200:  # nothing asked, no ranges here, or a file that has changed
            have, total = 0, response.length
            bound = _bound(total, rules)  # before the part of another mirror is given up for this one
            part.begin(url, _version(response), total)
        else:
            raise _MirrorError(f"HTTP {response.status}")
        _append(response, part, have, bound, rules.timeout)
    received = part.path.stat().st_size
    if total is not None and received < total:
        raise _BrokenError(f"ended after {received:,} of {total:,} bytes")


def _bound(total: int | None, rules: _Rules) -> int:
    if total is not None and rules.size is not None and total != rules.size:
        raise _MirrorError(f"announces {total:,} bytes, expected {rules.size:,}")
    bound = next(number for number in (total, rules.size, rules.limit) if number is not None)
    if bound > rules.limit:
        raise _MirrorError(f"announces {bound:,} bytes, allowed are {rules.limit:,}")
    return bound


def _check_continues(response: HTTPResponse, part: _Part, have: int, version: str, total: int | None) -> None:
    """Refuse a part that is not the rest of what has arrived: of another file, or from another place."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
    same = found is not None and int(found[1]) == have and (total is None or found[2] in ("*", str(total)))
    if not have or not same or _version(response) not in ("", version):
        part.discard()
        raise _BrokenError("sent a part of another file")


def _append(response: HTTPResponse, part: _Part, have: int, bound: int, timeout: float) -> None:
    since, counted, terminal = time.monotonic(), have, sys.stderr.isatty()
    bar = tqdm(desc=part.path.stem, total=bound, initial=have, unit="B", unit_scale=True, disable=not terminal)
    with bar, part.path.open("ab") as file:
        while True:
            with _network(timeout, _BrokenError):
                chunk = response.read1(_CHUNK)
            if not chunk:
                return
            have += len(chunk)
            if have > bound:
                part.discard()
                raise _MirrorError(f"sends more than {bound:,} bytes")
            file.write(chunk)
            bar.update(len(chunk))
            if time.monotonic() - since > timeout:
                if have - counted < _SLOWEST * timeout:
                    raise _BrokenError(f"stalls: {have - counted:,} bytes in {timeout:g} s")
                since, counted = time.monotonic(), have


@contextmanager
def _opened(url: str, headers: dict[str, str], part: _Part, rules: _Rules) -> Iterator[HTTPResponse]:
    """Follow redirects one by one: urllib would also read their bodies, however long."""
    opener = urllib.request.OpenerDirector()  # of http and https, and nothing else
    for kind in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPErrorProcessor"):
        opener.add_handler(getattr(urllib.request, kind)())
    for _ in range(rules.redirects + 1):
        if urlsplit(url).scheme not in ("http", "https"):
            raise _MirrorError(f"leads to {url}, which is not http(s)")
        try:
            with _network(rules.timeout, _MirrorError):
                response = opener.open(urllib.request.Request(url, headers=headers), timeout=rules.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what we have is not a part of what they have
                part.discard()
                raise _BrokenError("HTTP 416, refuses to resume") from None
            location = error.headers.get("Location") if error.code in (301, 302, 303, 307, 308) else None
            if not location:
                raise _MirrorError(f"HTTP {error.code} {error.reason}") from None
            with _network(rules.timeout, _MirrorError):
                url = urljoin(url, quote(location, encoding="iso-8859-1", safe=string.punctuation))
        else:
            with response:
                yield response
            return
    raise _MirrorError(f"redirects more than {rules.redirects} times")


@contextmanager
def _network(timeout: float, kind: type[_MirrorError]) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = f"no data for {timeout:g} s" if isinstance(cause, TimeoutError) else str(cause)
        raise kind(reason or type(cause).__name__) from error


def _version(response: HTTPResponse) -> str:
    """Return what tells this version of the file from others: a strong ETag or a date, as If-Range takes them."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _defect(path: Path, size: int | None, digests: Sequence[str]) -> str | None:
    count = path.stat().st_size
    if count == 0 or (size is not None and count != size):
        return f"has {count:,} bytes, expected {'more' if size is None else f'{size:,}'}"
    expected = [digest.lower() for digest in digests]
    hashes = {kind: hashlib.new(kind) for kind in sorted({digest.split(":")[0] for digest in expected})}
    with path.open("rb") as file:
        while hashes and (chunk := file.read(_CHUNK)):
            for value in hashes.values():
                value.update(chunk)
    found = [f"{name}:{value.hexdigest()}" for name, value in hashes.items()]
    fits = not expected or {*found} & {*expected}
    return None if fits else f"has {' and '.join(found)}, expected {' or '.join(expected)}"
