"""Secrets and places of this machine in files that are pushed."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import pytest

from stlm_kd.publishing.leaks import leaks

SECRETS = {
    "a token of the Hub": "hf_" + "aB3" * 12,
    "an API key": "sk-proj-" + "x1_-" * 8,
    "a token of GitHub": "ghp_" + "a1" * 18,
    "a key of AWS": "AKIA" + "ABCDEFGH12345678",
    "a key or password": "AWS_SECRET_ACCESS_KEY=" + "wJal/K7M+" * 5,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a token of GitLab": "glpat-" + "x1" * 10,
    "a token of Slack": "xoxb-" + "12-ab" * 4,
    "a key of Google": "AIza" + "x-1_" * 9,
    "a JSON web token": f"eyJ{'hbGci' * 4}.eyJ{'zdWI' * 4}.{'x1_-' * 8}",
    "a password in an address": "https://me:my-word@host.org/x",
    "the token that you use": "my-own-token",
    "the value of WANDB_API_KEY": "0123456789abcdef" * 2,
}
HARMLESS = (
    "eyJ.a.b; eyJhbGciOiJIUzI1NiJ9; eyJidx.values.of_a_matrix; "
    "hf_hub_download and hf://user/repo; task-agnostic-distillation-of-models; a sk-learn-like risk-averse-"
    "strategy-of-ours; ghp; AKIAB; -----BEGIN CERTIFICATE-----; /homework/x; home/alice/x; /home page; "
    "https://host.org:8080/x@y; https://host/a:b@c; glpat; xoxb; a colour://x; short-secret; "
    'tokenizer: "da67c3aca10aed859e8838d384495d"; password: no'
)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["the token that you use"])
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["the value of WANDB_API_KEY"])
    monkeypatch.setenv("MY_SECRET", "short-secret")


@pytest.mark.parametrize("name", ["recipe.yaml", "data/a.txt", "data/b.txt.gz", "model.safetensors"])
@pytest.mark.parametrize("what", SECRETS)
def test_a_secret_is_found_in_any_file_and_never_repeated(what: str, name: str, tmp_path: Path) -> None:
    text = f"first\nkey: {SECRETS[what]}\n".encode()
    path = tmp_path / Path(name).name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    else:
        head = len(text).to_bytes(8, "little") if name.endswith(".safetensors") else b""
        path.write_bytes(head + text)
    (fault,) = leaks({name: path})
    assert str(fault) == f"{name}: {what} in line 2; revoke it, and remove it from the file"
    assert SECRETS[what] not in str(fault)


def test_a_token_of_the_hub_is_found_in_base64(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(base64.b64encode(SECRETS["a token of the Hub"].encode()))
    assert "a token of the Hub in line 1" in str(leaks({"a": tmp_path / "a"})[0])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("at {home}/x", "a folder of this machine"),
        ("at {here}", "a folder of this machine"),
        ("at /home/alice/models", "a folder of this machine"),
        ("at C:\\\\Users\\\\alice\\\\models", "a folder of this machine"),
        ("by alicia", "your user name on this machine"),
    ],
)
def test_places_of_this_machine_may_be_in_data_but_not_in_results(
    text: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "alicia"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text(text.format(home=home, here=tmp_path))
    (fault, *_) = leaks({"results.json": file, "data/a.txt": file})
    assert (fault.place, fault.message.partition(" in line")[0]) == ("results.json", what)
    assert len(leaks({"data/a.txt": file})) == 0
    if "user" in what:
        assert leaks({"results.json": file}, known="hf://alicia/tiny") == []


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("data/cut.txt.gz", gzip.compress(SECRETS["an API key"].encode() + bytes(9000), mtime=0)[:-6], 1),
        ("data/other.txt.gz", b"no archive", 0),
        ("model.safetensors", b"\xff" * 20, 1),
        ("model.safetensors", b"x", 1),
    ],
)
def test_a_damaged_file_is_read_as_far_as_it_can_be(
    name: str, content: bytes, found: int, tmp_path: Path
) -> None:
    path = tmp_path / Path(name).name
    path.write_bytes(content)
    assert len(leaks({name: path})) == found


def test_ordinary_text_holds_no_secret(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(HARMLESS)
    assert leaks({"results.json": tmp_path / "results.json"}) == []
