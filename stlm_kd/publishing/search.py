"""Find recipes: the built-in ones, those on the Hub, and without the Hub those that were fetched before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.artifacts.hashing import cache_folder
from stlm_kd.errors import StlmKdError, printable
from stlm_kd.notes import note
from stlm_kd.recipe.locate import built_in, text_of
from stlm_kd.recipe.yaml import Plain, YamlError, parse
from stlm_kd.recipes import purpose
from stlm_kd.sharing.address import TAG
from stlm_kd.sharing.failures import HubUnreachable, hub_errors
from stlm_kd.sharing.hub import is_offline
from stlm_kd.sharing.names import HubName

_Task = Literal["clm", "mlm", "classification", "regression"]

_MOST = 100
"""Maximum number of recipes on the Hub that are listed."""


@dataclass(frozen=True, slots=True)
class FoundRecipe:
    """A recipe by its name or address; in its texts, what does not print is escaped."""

    name: str
    place: Literal["built-in", "hub", "cache"]
    task: str
    teachers: tuple[str, ...]
    purpose: str


def search(words: str = "", *, task: str | None = None, teacher: str | None = None) -> list[FoundRecipe]:
    """Recipes that have all words in their names (built-in ones: or in their purposes), built-in ones first.

    Without the Hub, one line says so, and fetched recipes stand in for those on it.

    Args:
        words: Words; "" for all.
        task: ``clm``, ``mlm``, ``classification`` or ``regression``.
        teacher: The id of a teacher on the Hub.

    Raises:
        MissingResourceError: The Hub refuses.
    """
    found = [
        _of_tree(one.name, "built-in", one.purpose, parse(text_of(one.path)).plain()) for one in built_in()
    ]
    try:
        if is_offline():
            raise HubUnreachable("the Hub is switched off (HF_HUB_OFFLINE)")
        elsewhere = [*_on_hub(words, task, teacher)]
    except HubUnreachable as error:
        note(f"{error}; listed are the built-in recipes and those that were fetched before")
        elsewhere = [*_fetched()]
    wanted = words.casefold().split()
    return [
        one
        for one in (*found, *elsewhere)
        if (one.place == "hub" or all(word in f"{one.name} {one.purpose}".casefold() for word in wanted))
        and task in (None, one.task)
        and (teacher is None or teacher in one.teachers)
    ]


def _on_hub(words: str, task: str | None, teacher: str | None) -> Iterator[FoundRecipe]:
    """Recipes by the Hub's listing as it is.

    ``HfApi.list_models`` has the same limit, but a card that it cannot read (``self: 1``) ends its listing.
    """
    from huggingface_hub import constants, get_session, get_token, hf_raise_for_status

    tags = [TAG, *([task] if task else []), *([f"base_model:{teacher}"] if teacher else [])]
    asked: dict[str, Any] = {"filter": tags, "full": "true", "cardData": "true", "limit": _MOST}
    with hub_errors(HubName("model", TAG)):
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/models",
            params=asked | ({"search": words} if words else {}),
            headers={"authorization": f"Bearer {token}"} if (token := get_token()) else {},
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        hf_raise_for_status(answer)
        listed = _listed(answer.json())
        if listed is None:
            raise ValueError("no list of models")
    for one in listed[:_MOST]:
        if isinstance(one, dict) and isinstance(one.get("id"), str):
            card = one["cardData"] if isinstance(one.get("cardData"), dict) else {}
            tasks = [str(tag) for tag in _listed(one.get("tags")) or () if tag in get_args(_Task)]
            base = card.get("base_model")
            bases = [base] if isinstance(base, str) else _listed(base) or []
            teachers = tuple(_line(name) for name in bases if isinstance(name, str))
            about = card["purpose"] if isinstance(card.get("purpose"), str) else ""
            yield FoundRecipe(f"hf://{_line(one['id'])}", "hub", "".join(tasks[:1]), teachers, _line(about))


def _listed(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


def _line(text: object) -> str:
    return printable(" ".join(str(text).split()), keep="", most=200)


def _fetched() -> Iterator[FoundRecipe]:
    """Recipes of the Hub in the cache, each once."""
    known: set[str] = set()
    for manifest in sorted((cache_folder() / "recipes").glob("*/manifest.json")):
        try:
            address = str(read_json(manifest)["address"])
            file = manifest.parent / "files" / "recipe.yaml"
            values, about = parse(text_of(file)).plain(), purpose(file)
        except (OSError, ValueError, KeyError, TypeError, StlmKdError, YamlError):
            continue
        name = _line(address.partition("@")[0])
        if address.startswith("hf://") and name not in known:
            known.add(name)
            yield _of_tree(name, "cache", _line(about), values)


def _of_tree(name: str, place: Literal["built-in", "cache"], about: str, values: Plain) -> FoundRecipe:
    """A recipe by what its own file says; of one that extends another, that is little."""
    given = values if isinstance(values, dict) else {}
    listed = given.get("teachers")
    rows = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    teachers = tuple(_line(one["model"]) for one in rows if one.get("model"))
    return FoundRecipe(name, place, _line(given.get("task") or ""), teachers, about)
