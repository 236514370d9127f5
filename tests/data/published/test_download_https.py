"""A download that begins with https does not end with http, unless a SHA-256 is known."""

from pathlib import Path
from typing import Any

import pytest
import requests
from bad_server import BODY, MD5, SHA, Server, ranged, redirect, send

from pc_ewa.data.published.download import download
from pc_ewa.errors import DataError


@pytest.fixture
def secure(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server of https, which answers as the one of http does at the same paths."""
    plain = requests.adapters.HTTPAdapter.send

    def answered(self: requests.adapters.HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> Any:
        assert request.url is not None
        asked = request.url
        request.url = asked.replace("https://secure.example", server.address)
        response = plain(self, request, **options)
        request.url = response.url = asked
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answered)
    return "https://secure.example"


def test_https_does_not_fall_back_to_http_without_a_sha256(server: Server, secure: str, tmp_path: Path) -> None:
    server("/gone", send(b"", 404))
    urls = [f"{secure}/gone", server("/a", ranged())]
    with pytest.raises(DataError, match=rf"HTTP 404.*; {urls[1]}: is http where https is required, and no SHA-256"):
        download(urls, tmp_path / "a", digests=[MD5])
    with pytest.raises(DataError, match="is http where https is required"):
        download(urls[::-1], tmp_path / "a", digests=[MD5])
    assert {path for path, _ in server.requests} == {"/gone"}
    download(urls, tmp_path / "a", digests=[MD5, SHA])
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("hops", [1, 3])
def test_https_is_not_redirected_to_http_without_a_sha256(
    server: Server, secure: str, tmp_path: Path, hops: int
) -> None:
    target = server("/file", ranged())
    for hop in range(hops):
        server(f"/{hop}", redirect(target.replace("http:", "HTTP:") if hop == 0 else f"{hop - 1}"))
    url = f"{secure}/{hops - 1}"
    with pytest.raises(DataError, match=r"redirects to HTTP://127.*, which is http where") as caught:
        download([url], tmp_path / "a", digests=[MD5])
    assert "/file" not in {path for path, _ in server.requests}  # nothing was asked for there
    assert str(caught.value).isprintable()
    download([url], tmp_path / "a", digests=[MD5, SHA])
    assert (tmp_path / "a").read_bytes() == BODY


def test_redirects_from_https_to_https_are_followed(server: Server, secure: str, tmp_path: Path) -> None:
    server("/a", redirect(f"{secure}/b"))
    server("/b", redirect("//secure.example/c"))
    server("/c", ranged(cut=6000))
    download([f"{secure}/a"], tmp_path / "a", digests=[MD5])
    assert (tmp_path / "a").read_bytes() == BODY
