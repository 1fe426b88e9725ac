"""Sign the folder of a recipe with an elliptic-curve key, and check who signed one; offline.

The signature is ``recipe.sig`` in the folder: a Sigstore bundle by the package ``model-signing`` with the
SHA-256 of all files that are published, but for itself and the card README.md. The package's own command
reads it as well.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from stlm_kd.artifacts.atomic import writing
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, UsageError
from stlm_kd.sharing.address import RECIPE
from stlm_kd.sharing.limits import SIGNATURE, Entry, checked_listing

_UNSIGNED = (SIGNATURE, "README.md")
_MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY"
_MAKE_PUBLIC = "openssl ec -in KEY -pubout -out PUBLIC_KEY"


def sign_recipe(folder: str | PathLike[str], key: str | PathLike[str]) -> Path:
    """Write ``recipe.sig`` into the folder of a recipe; returns its path.

    Args:
        folder: A folder with ``recipe.yaml``, as it is to be published.
        key: An elliptic-curve private key (P-256, P-384 or P-521) as PEM without a password.

    Raises:
        MissingResourceError: The extra ``signing`` is not installed, there is no such recipe or key, or the
            signature cannot be written.
        RecipeError: The folder has files that may not be published.
        UsageError: The key is none of that kind.
    """
    signing = _library("signing")
    if not Path(folder, RECIPE).is_file():
        raise MissingResourceError(f"{folder}: no {RECIPE} there; expected the folder of a recipe")
    target = Path(folder, SIGNATURE)
    config = _configured(signing, "use_elliptic_key_signer", key, "private_key")
    with _as_published(Path(folder)) as (copy, _), writing(target, "folder"):
        config.set_hashing_config(_hashing()).sign(copy, target)
    return target


def require_signature(folder: str | PathLike[str], key: str | PathLike[str]) -> tuple[str, ...]:
    """Refuse a recipe's folder unless the owner of a key signed it as it is; returns the names of the files.

    Args:
        folder: The folder.
        key: The public key as PEM.

    Raises:
        MissingResourceError: The extra ``signing`` is not installed, there is no such key, or the folder is
            not signed.
        RecipeError: Another key signed it, or files were changed, added or removed since.
        UsageError: The key is no public elliptic-curve key.
    """
    verifying = _library("verifying")
    signature = Path(folder, SIGNATURE)
    if not signature.is_file():
        raise MissingResourceError(f"{folder}: not signed; it has no {SIGNATURE}")
    config = _configured(verifying, "use_elliptic_key_verifier", key, "public_key")
    hashing = _hashing()
    hashing.add_ignored_paths = lambda **_: None  # a signature does not choose what it covers
    with _as_published(Path(folder)) as (copy, names):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                config.set_hashing_config(hashing).verify(copy, signature)
        except Exception as error:  # whatever a malicious signature provokes in several packages
            message = f"not a signature of these files by the owner of {key}: {_reason(error)}"
            raise RecipeError(str(folder), [RecipeFault(SIGNATURE, message)]) from error
    return names


@contextlib.contextmanager
def _as_published(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A copy of a folder with only the files that a signature covers, and their names."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    entries = checked_listing((_entry(path, folder) for path in files), str(folder))
    names = tuple(entry.path for entry in entries if entry.path not in _UNSIGNED)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "recipe")
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy / name)
        yield copy, names


def _entry(path: Path, folder: Path) -> Entry:
    is_file = path.is_file() and not path.is_symlink()
    return Entry(path.relative_to(folder).as_posix(), path.lstat().st_size, "", is_file)


def _reason(error: Exception) -> str:
    """A refusal on one line, without the bytes of digests."""
    text = str(error).strip().partition("\n")[0] if isinstance(error, ValueError) else type(error).__name__
    text = re.sub(r": Expected 'Digest\(.*?\)', Actual 'Digest\(.*?\)'", "", text)
    return ascii(text)[1:-1].replace("\\'", "'")[:400]


def _library(module: str) -> Any:
    try:
        return import_module(f"model_signing.{module}")
    except ImportError as error:
        message = "signatures need the package model-signing; pip install 'stlm-kd[signing]'"
        raise MissingResourceError(message) from error


def _hashing() -> Any:
    """Each file with its SHA-256; noted in the signature: which files it leaves out."""
    return _library("hashing").Config().set_ignored_paths(paths=_UNSIGNED)


def _configured(module: Any, use: str, key: str | PathLike[str], argument: str) -> Any:
    """The package's configuration with a key."""
    kind = argument.replace("_", " ")
    make = _MAKE_KEY if argument == "private_key" else _MAKE_PUBLIC
    try:
        return getattr(module.Config(), use)(**{argument: Path(key)})
    except OSError as error:
        raise MissingResourceError(f"{key}: cannot be read ({error.strerror}); make one: {make}") from error
    except (ValueError, TypeError, AttributeError) as error:
        expected = f"an elliptic-curve {kind} (P-256, P-384 or P-521) as PEM without a password"
        raise UsageError(f"{key}: expected {expected}; make one: {make}") from error
