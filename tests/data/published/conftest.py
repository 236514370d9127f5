"""A server of downloads."""

from collections.abc import Iterator

import pytest
from bad_server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pc_ewa.data.published.download._CHUNK", 500)
    with serving() as started:
        yield started
