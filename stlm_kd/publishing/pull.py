"""Copy a recipe's folder from an address, checked, to a folder of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from stlm_kd.errors import RecipeError, RecipeFault, UsageError
from stlm_kd.publishing.targets import Contents, replace_folder
from stlm_kd.recipe.foreign import check_fetched, foreign_faults
from stlm_kd.recipe.locate import run_name
from stlm_kd.recipe.yaml import YamlError, parse
from stlm_kd.sharing.address import parse_address
from stlm_kd.sharing.fetch import Fetched, fetch


@dataclass(frozen=True, slots=True)
class Pulled:
    """A recipe that was copied.

    Attributes:
        folder: The copy.
        recipe: The recipe in it.
        origin: The address, with commit or hash.
        sizes: Bytes of each file.
    """

    folder: Path
    recipe: Path
    origin: str
    sizes: Mapping[str, int]


def pull(address: str, destination: str | PathLike[str] | None = None, *, overwrite: bool = False) -> Pulled:
    """Copy a recipe's folder; nothing of it is run.

    The copy counts as the user's own, so recipes that ask for what fetched ones may not are refused.

    Args:
        address: ``hf://…``, ``https://…`` or ``git+https://…``.
        destination: A new folder; None: named like the recipe's runs, in the current folder.
        overwrite: Whether to replace an existing folder that holds nothing but a recipe's files.

    Raises:
        UsageError: No address, or the folder exists.
        MissingResourceError: It cannot be reached, or not written, or the folder holds something else.
        RecipeError: It is refused.
    """
    parsed = parse_address(address)
    if parsed is None:
        raise UsageError(f"{address}: not an address; to copy a recipe of this machine: stlm-kd recipe copy")
    target = Path(run_name(address) if destination is None else destination)
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: exists; choose another folder, or replace it with --force")
    found = fetch(parsed, check=check_fetched)
    faults = [fault for name in found.hashes if name.endswith(".yaml") for fault in _faults(found, name)]
    if faults:
        raise RecipeError(str(found.origin), faults)
    files = {name: found.folder / name for name in found.hashes}
    marker = found.file.relative_to(found.folder).as_posix()
    replace_folder(target, Contents(files, marker, ""), option="DEST")
    sizes = {name: (target / name).stat().st_size for name in found.hashes}
    return Pulled(target, target / found.file.relative_to(found.folder), str(found.origin), sizes)


def _faults(found: Fetched, name: str) -> list[RecipeFault]:
    try:
        return foreign_faults(
            parse((found.folder / name).read_text("utf-8"), origin=f"{found.origin} {name}")
        )
    except YamlError as error:
        return [RecipeFault(name, str(fault)) for fault in error.faults]
