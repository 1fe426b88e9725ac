"""Signatures of recipes by the package model-signing, which the extra ``signing`` installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.publishing.signing import require_signature, sign_recipe
from tests.support.hub import Hub
from tests.support.hub_world import World
from tests.support.road import stlm_kd

pytest.importorskip("model_signing", reason="model-signing is not installed: pip install 'stlm-kd[signing]'")

FILES = {
    "recipe.yaml": "task: clm\n",
    "recipe.lock": f"format: 1\nrecipe: sha256:{'0' * 64}\nmade: {{by: me}}\n",
    "results.json": "{}\n",
    "teachers/t.yaml": "task: clm\n",
    "data/a.txt": "Text.\n",
}


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys, as the messages and the documentation make them, and keys of other kinds."""
    folder = tmp_path_factory.mktemp("keys")
    for name, curve in (("own", "prime256v1"), ("other", "secp384r1"), ("odd", "secp256k1")):
        openssl("ecparam", "-name", curve, "-genkey", "-noout", "-out", f"{folder}/{name}")
        openssl("ec", "-in", f"{folder}/{name}", "-pubout", "-out", f"{folder}/{name}.pub")
    openssl("genrsa", "-out", f"{folder}/rsa", "2048")
    openssl("ec", "-in", f"{folder}/own", "-aes128", "-passout", "pass:secret", "-out", f"{folder}/locked")
    (folder / "text").write_text("no key")
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    folder = tmp_path / "mine"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "run.json").write_text("not published")
    assert sign_recipe(folder, keys / "own") == folder / "recipe.sig"
    return folder


def test_a_signature_covers_what_is_published_but_for_the_card(signed: Path, keys: Path) -> None:
    (signed / "README.md").write_text("the card")
    (signed / "run.json").unlink()
    copy = shutil.copytree(signed, signed.with_name("renamed"))
    assert set(require_signature(copy, keys / "own.pub")) == FILES.keys()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "model_signing", "verify", "key", str(copy)),
            *("--signature", str(copy / "recipe.sig"), "--public_key", str(keys / "own.pub")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0 and "succeeded" in ended.stdout + ended.stderr, ended


def less(folder: Path, key: Path) -> None:
    """Sign all but one file, which the signature says to ignore."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["data", "run.json", "recipe.sig"]))
    config.sign(folder, folder / "recipe.sig")


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "changed byte": lambda folder, keys: (folder / "results.json").write_text("{}\r"),
    "extra recipe": lambda folder, keys: (folder / "more.yaml").write_text(""),
    "extra data": lambda folder, keys: (folder / "data/b.txt").write_text(""),
    "missing": lambda folder, keys: (folder / "data/a.txt").unlink(),
    "renamed": lambda folder, keys: (folder / "data/a.txt").rename(folder / "data/c.txt"),
    "other key": lambda folder, keys: sign_recipe(folder, keys / "other"),
    "covers less": lambda folder, keys: less(folder, keys / "own"),
    "empty": lambda folder, keys: (folder / "recipe.sig").write_text(""),
    "no bundle": lambda folder, keys: (folder / "recipe.sig").write_text("[{}]"),
    "binary": lambda folder, keys: (folder / "recipe.sig").write_bytes(b"\xff\xfe"),
    "link": lambda folder, keys: (folder / "more.yaml").symlink_to(keys / "text"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_is_not_as_its_key_signed_it_is_refused(signed: Path, keys: Path, change: str) -> None:
    CHANGES[change](signed, keys)
    with pytest.raises(RecipeError, match=f"{signed}") as caught:
        require_signature(signed, keys / "own.pub")
    assert str(caught.value).isprintable() or "\n  " in str(caught.value)


@pytest.mark.parametrize("key", ["rsa", "odd", "locked", "text"])
def test_keys_of_other_kinds_are_named(signed: Path, keys: Path, key: str) -> None:
    with pytest.raises(UsageError, match=r"expected an elliptic-curve private key .*; make one: openssl ec"):
        sign_recipe(signed, keys / key)
    with pytest.raises(UsageError, match=r"expected an elliptic-curve public key .*; make one: openssl ec"):
        require_signature(signed, keys / key)


def test_what_is_missing_is_named(signed: Path, keys: Path) -> None:
    with pytest.raises(MissingResourceError, match="none: cannot be read"):
        sign_recipe(signed, keys / "none")
    (signed / "recipe.sig").unlink()
    with pytest.raises(MissingResourceError, match="not signed"):
        require_signature(signed, keys / "own.pub")
    (signed / "recipe.yaml").unlink()
    with pytest.raises(MissingResourceError, match="the folder of a recipe"):
        sign_recipe(signed, keys / "own")


def test_the_command_signs_and_a_fetched_folder_is_verified(signed: Path, keys: Path, tmp_path: Path) -> None:
    ended = stlm_kd("recipe", "sign", str(signed), "--key", str(keys / "own"))
    assert ended.exit_code == 0 and ended.stdout.startswith(f"{signed / 'recipe.sig'}\n"), ended.output
    code = """
import json, sys
from stlm_kd import pull_recipe
from stlm_kd.publishing.signing import require_signature
print(json.dumps(require_signature(pull_recipe("hf://alice/signed").folder, sys.argv[1])))
"""
    with Hub() as hub:
        files = {path.relative_to(signed).as_posix(): path for path in signed.rglob("*") if path.is_file()}
        hub.add("model", "alice/signed", {**files, "README.md": "# Card"})
        assert set(World(hub, tmp_path).python(code, str(keys / "own.pub"))) == FILES.keys()
