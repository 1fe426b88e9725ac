"""Whether the Hub answers, whatever its address is set to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from stlm_kd.data.sources.hub import hub_answers
from stlm_kd.errors import MissingResourceError


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


def server(answer: bytes) -> str:
    """The address of a server that gives one answer."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("address", ["foo", "", "http://a b", "http://host:port"])
def test_an_address_that_is_none_is_named_with_its_variable(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(MissingResourceError, match=f"HF_ENDPOINT: '{address}' found"):
        hub_answers()


def test_a_server_that_speaks_no_http_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server(b"SSH-2.0-x\r\n"))
    with pytest.raises(MissingResourceError, match="HF_ENDPOINT"):
        hub_answers()


def test_a_hub_that_is_not_there_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_answers()


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_a_hub_answers_also_where_it_refuses(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server(f"HTTP/1.0 {status}\r\n\r\n".encode()))
    assert hub_answers()
