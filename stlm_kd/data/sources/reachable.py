"""Whether models and data sets of the Hugging Face Hub are cached, and whether the Hub is reachable."""

from __future__ import annotations

from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from stlm_kd.errors import MissingResourceError


def data_set_is_cached(name: str, configuration: str | None = None) -> bool:
    """Whether the ``datasets`` library has a data set in its cache, in this configuration or in any."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return (folder / configuration if configuration is not None else folder).is_dir()


def file_is_cached(repository: str, *names: str) -> bool:
    """Whether the Hub's cache has one of these files of a model repository.

    Raises:
        ValueError: The name is not a Hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


@cache
def hub_answers() -> bool:
    """Whether the Hub is reachable; tested once, and never in offline mode.

    Raises:
        MissingResourceError: Its address (``HF_ENDPOINT``) is invalid, or the server there is not HTTP.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True  # the Hub refused the request, so it is reachable
    except OSError:
        return False
    except (ValueError, HTTPException) as error:
        raise MissingResourceError(
            f"the environment variable HF_ENDPOINT: {constants.ENDPOINT!r} found ({error!r}); expected the "
            "address of a Hub, such as https://huggingface.co; correct or unset it"
        ) from error
    return True
