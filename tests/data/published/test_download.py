"""Downloads from a server that does all that servers do wrong: each file arrives whole, or a reason does."""

import contextlib
import hashlib
import socket
import time
from pathlib import Path

import pytest
from bad_server import BODY, MD5, SHA, Reply, Server, ranged, redirect, send, stalling
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.data.published.download import download
from pc_ewa.errors import DataError

TIMEOUT = 0.15


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_checked_and_alone(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.zip"
    url = server("/a", ranged())
    assert download([url], target, digests=[MD5]) == target
    assert target.read_bytes() == BODY
    assert left(target.parent) == ["a.zip"]
    assert download([url], target, digests=[SHA]) == target
    assert len(server.requests) == 1


def test_one_fitting_digest_suffices(server: Server, tmp_path: Path) -> None:
    url = server("/a", send(BODY))
    download([url], tmp_path / "a", digests=["md5:" + "0" * 32, SHA.upper().replace("SHA256", "sha256")])
    download([url], tmp_path / "b", digests=["md5:" + "0" * 32, MD5])
    assert left(tmp_path) == ["a", "b"]


def test_a_file_that_is_there_and_is_another_is_not_touched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"/a has md5:.*, expected md5:.*; move it away"):
        download([server("/a", send(BODY))], tmp_path / "a", digests=[MD5])
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert server.requests == []


def test_a_connection_that_breaks_is_continued(server: Server, tmp_path: Path) -> None:
    url = server("/a", ranged(cut=4000))
    download([url], tmp_path / "a", digests=[MD5])
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests == [("/a", None), ("/a", "bytes=4000-"), ("/a", "bytes=8000-")]
    assert left(tmp_path) == ["a"]


def test_the_next_call_continues_where_the_last_stopped(server: Server, tmp_path: Path) -> None:
    url = server("/a", ranged(cut=1000))
    with pytest.raises(DataError, match=r"1000 bytes read.*attempt 1.*try again later, which res"):
        download([url], tmp_path / "a", digests=[MD5], attempts=1)
    assert left(tmp_path) == ["a.part"]
    server("/a", ranged())
    download([url], tmp_path / "a", digests=[MD5], attempts=1)
    assert server.requests == [("/a", None), ("/a", "bytes=1000-")]
    assert left(tmp_path) == ["a"]


def test_stopped_before_the_check_the_file_arrives_all_the_same(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(BODY)
    download([server("/a", ranged())], tmp_path / "a", digests=[MD5])
    assert (tmp_path / "a").read_bytes() == BODY
    assert left(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "second",
    [
        ranged(),  # the rest of another file: the digest tells
        send(BODY),  # no ranges
        send(BODY[4001:], 206, Content_Range="bytes 4001-10239/10240"),
        send(BODY[4000:], 206, Content_Range="bytes 4000-10239/10241"),
        send(BODY[4000:], 206, Content_Range="bytes x"),
        send(b"", 416),
    ],
)
def test_what_does_not_fit_the_part_begins_anew(server: Server, tmp_path: Path, second: Reply) -> None:
    url = server("/a", ranged(b"x" * len(BODY), cut=4000), second, ranged(tag='"two"'))
    download([url], tmp_path / "a", digests=[MD5])
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_of_another_mirror_does_no_harm(server: Server, tmp_path: Path) -> None:
    urls = [server("/a", ranged(b"y" * 9000, cut=4000)), server("/b", ranged())]
    download(urls, tmp_path / "a", digests=[MD5], attempts=2)
    assert (tmp_path / "a").read_bytes() == BODY
    assert left(tmp_path) == ["a"]


def test_a_stall_ends(server: Server, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"/a: .*timed out.*attempt 2"):
        download([server("/a", stalling(server, b""))], tmp_path / "a", digests=[MD5], timeout=TIMEOUT, attempts=2)
    assert time.monotonic() - begin < 3


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(DataError, match="timed out"):
            download([url], tmp_path / "a", digests=[MD5], timeout=TIMEOUT, attempts=1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (send(b"", 404), "HTTP 404 Not Found"),
        (send(b"", 503), "HTTP 503 Service Unavailable"),
        (send(b"", 204), "HTTP 204"),
        (send(BODY, 206), "range that was not requested"),
        (send(b""), "what it sent has md5"),
        (send(BODY[:-1]), "what it sent has md5"),
        (send(BODY[:-1], length="none"), "what it sent has md5"),
        (send(BODY, length=10**12), "10240 bytes read"),
        (send(BODY, length="many"), "."),
        (send(BODY + b"x", length="none"), "what it sent has md5"),
        (send(b"x" * len(BODY)), "what it sent has md5:.*, expected md5:"),
        (redirect("file:///etc/passwd"), "No connection adapters"),
        (redirect("ftp://127.0.0.1/a"), "No connection adapters"),
        (redirect("/a"), "redirects"),
        (redirect("http://[::1"), "."),
        (redirect("http://127.0.0.1:99999/"), "."),
        (lambda request: request.wfile.write(b"\xff\x00 nonsense\r\n\r\n"), "."),
        (lambda request: None, "."),
    ],
)
def test_a_bad_mirror_gives_its_reason_and_the_next_one_the_file(
    server: Server, tmp_path: Path, reply: Reply, reason: str
) -> None:
    url = server("/a", reply)
    with pytest.raises(DataError, match=rf"cannot download a.zip: {url}: .*({reason})") as caught:
        download([url], tmp_path / "a.zip", digests=[MD5])
    assert f"with a browser to {tmp_path}/a.zip (expected: {MD5})" in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "a.zip").exists()
    download([url, server("/b", ranged())], tmp_path / "a.zip", digests=[MD5])
    assert left(tmp_path) == ["a.zip"]


def test_a_server_that_sends_without_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pc_ewa.data.published.download._LIMIT", 9999)
    with pytest.raises(DataError, match=r"sends more than 9,999 bytes"):
        download([server("/a", send(BODY, length="none"))], tmp_path / "a", digests=[MD5], attempts=1)


def test_every_mirror_is_named_and_escape_codes_are_not_passed_on(server: Server, tmp_path: Path) -> None:
    urls = [server("/a", send(b"", 404)), server("/b", redirect("http\x1b[31m://x")), "file:///etc/passwd"]
    with pytest.raises(DataError) as caught:
        download(urls, tmp_path / "a", digests=[MD5])
    assert all(url in str(caught.value) for url in urls)
    assert str(caught.value).isprintable()
    with pytest.raises(DataError, match=r"no mirror is known; .* with a browser to"):
        download([], tmp_path / "a", digests=[MD5])


def test_redirects_are_followed_and_keep_the_range(server: Server, tmp_path: Path) -> None:
    server("/files/b b", ranged(cut=9000))
    server.replies["/files/b%20b"] = server.replies["/files/b b"]
    url = server("/a", redirect("c", 301))
    server("/c", redirect(f"{server.address}/files/b b", 308))
    download([url], tmp_path / "a", digests=[MD5])
    assert server.requests[-1] == ("/files/b%20b", "bytes=9000-")


def test_what_came_by_http_must_fit_the_sha256_where_one_is_known(server: Server, tmp_path: Path) -> None:
    other = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
    with pytest.raises(DataError, match=rf"what it sent has sha256:.*, expected {other}"):
        download([server("/a", ranged())], tmp_path / "a", digests=[MD5, other])


def test_a_wrong_checksum_leaves_nothing_to_continue(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="what it sent has md5"):
        download([server("/a", ranged(b"x" * 100))], tmp_path / "a", digests=[MD5])
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*/file/a: .*choose a folder"):
        download([server("/a", ranged())], tmp_path / "file" / "a", digests=[MD5])
    (tmp_path / "a.part").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*/a: .*choose a folder"):
        download([server("/a", ranged())], tmp_path / "a", digests=[MD5])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.binary(max_size=20_000))
def test_whatever_is_left_from_before(server: Server, tmp_path: Path, part: bytes) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "a.part").write_bytes(part)
    download([server("/a", ranged())], tmp_path / "a", digests=[MD5])
    assert left(tmp_path) == ["a"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_response_is_a_reason_or_the_file(server: Server, tmp_path: Path, data: st.DataObject) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    sound = bytearray(b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\nETag: "a"\r\n\r\n' + BODY[:20])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sound) - 1))
        sound[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    url = server("/a", lambda request: request.wfile.write(bytes(sound)) and None)
    digest = f"md5:{hashlib.md5(BODY[:20]).hexdigest()}"
    with contextlib.suppress(DataError):
        download([url], tmp_path / "a", digests=[digest], timeout=0.05, attempts=2)
        assert (tmp_path / "a").read_bytes() == BODY[:20]
