"""One message for each way in which the Hub fails, with cause and remedy, for models and data alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stlm_kd.artifacts.atomic import is_full_disk
from stlm_kd.errors import MissingResourceError, first_line
from stlm_kd.sharing.names import HubName


class HubUnreachable(MissingResourceError):
    """The Hub does not answer: offline mode, no network, timeout, or a server error."""


class RateLimited(HubUnreachable):
    """The Hub answers again after a while."""


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Raise what goes wrong between us and the Hub as one message with its cause and its cure.

    Raises:
        HubUnreachable: Offline mode, no network, timeout, or a server error.
        MissingResourceError: Any other failure.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of its HTTP library, which differs between releases.
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    expected: tuple[type[Exception], ...] = (*bases, OSError, ValueError, TypeError, KeyError, AttributeError)
    try:
        yield
    except MissingResourceError:
        raise
    except expected as error:
        if is_full_disk(error):
            raise
        raise _explained(name, error) from error
    except Exception as error:
        if type(error).__name__ == "InvalidURL":  # of the HTTP library, whose name differs between releases
            raise _explained(name, error) from error
        raise


def _explained(name: HubName, error: Exception) -> MissingResourceError:
    """The message for the first error of a chain that says what happened."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    answered = next((one for one in chain if isinstance(one, errors.HfHubHTTPError)), None)
    if answered is not None:
        return _refused(name, answered)
    kinds = {kind.__name__: one for one in chain for kind in type(one).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return HubUnreachable(
            f"{name}: not in the cache, and offline mode is on; unset HF_HUB_OFFLINE (or "
            "TRANSFORMERS_OFFLINE) and fetch it once "
            f"(hf download {name.id}{fetch_options(name)}), or give a folder"
        )
    if "TimeoutException" in kinds:
        return HubUnreachable(
            f"{name}: {endpoint()} did not answer in time; try again, or give it longer "
            "(HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT, in seconds)"
        )
    if "InvalidURL" in kinds or "UnsupportedProtocol" in kinds:
        return MissingResourceError(
            f"{name}: HF_ENDPOINT: {endpoint()!r} found; expected the address of a Hub, such as "
            "https://huggingface.co; correct or unset it"
        )
    if "TransportError" in kinds:
        return HubUnreachable(
            f"{name}: {endpoint()} cannot be reached ({first_line(kinds['TransportError'])}); check the "
            "network and the proxy, or set HF_HUB_OFFLINE=1 to use what is cached"
        )
    if "HFValidationError" in kinds:
        return MissingResourceError(f"{name}: not an id on the Hub ({first_line(error)}); expected org/name")
    if isinstance(error, PermissionError):
        return MissingResourceError(
            f"{error.filename or name}: no access ({error.strerror}); set HF_HOME to a folder of yours"
        )
    if "Consistency check failed" in str(error):
        return HubUnreachable(f"{name}: a download broke off ({first_line(error)}); run the command again")
    if kinds.keys() & {"DatasetNotFoundError", "ConnectionError"}:  # of the datasets library, without a cause
        return HubUnreachable(f"{name}: {endpoint()} failed ({first_line(error)}); try again")
    if isinstance(error, OSError) and error.errno is not None:
        return MissingResourceError(f"{error.filename or name}: {error.strerror}")
    return MissingResourceError(
        f"{name}: the answer of {endpoint()} is not that of a Hub ({first_line(error)}); check HF_ENDPOINT, "
        "the proxy, and whether the network wants a login"
    )


def _refused(name: HubName, error: Any) -> MissingResourceError:
    """The message for an answer with an error's status."""
    from huggingface_hub import errors, get_token

    status, url = error.response.status_code, f"{endpoint()}/{_page(name)}"
    what = {"model": "model", "dataset": "data set"}[name.kind]
    said = str(error.server_message or "")
    if isinstance(error, errors.GatedRepoError):
        todo = (
            f"ask for access at {url}" if status == 403 else f"accept its terms at {url}, then hf auth login"
        )
        who = "your account has no access" if status == 403 else "you are not logged in"
        return MissingResourceError(f"{name}: a gated {what}, and {who}; {todo}")
    if isinstance(error, errors.DisabledRepoError):
        return MissingResourceError(f"{name}: the Hub disabled this {what}; use another one")
    if isinstance(error, errors.RevisionNotFoundError):
        return MissingResourceError(
            f"{name}: no such revision; {url}/commits/main lists branches, tags and commits"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return MissingResourceError(f"{name}: a file is missing on the Hub ({first_line(error)}); see {url}")
    if status == 401 and "invalid" in said.lower() and "credentials" in said.lower():
        return MissingResourceError(
            f"{name}: the Hub does not accept your token; log in again (hf auth login), or correct or unset "
            "HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        if get_token() is None:
            return MissingResourceError(
                f"{name}: no such public {what} on the Hub; check the name; if it is private, log in "
                "(hf auth login)"
            )
        return MissingResourceError(
            f"{name}: no such {what} on the Hub that your token may read; check the name; if it is private, "
            "use a token with access to it"
        )
    if status == 429:
        seconds = re.search(r"t=(\d+)", error.response.headers.get("RateLimit", ""))
        wait = f"in {seconds[1]} seconds" if seconds else "in a few minutes"
        return RateLimited(
            f"{name}: the Hub's rate limit is reached; try again {wait}, or log in for a higher limit "
            "(hf auth login)"
        )
    if status >= 500:
        return HubUnreachable(
            f"{name}: {endpoint()} has a fault of its own (status {status}); try again later "
            "(https://status.huggingface.co), or set HF_HUB_OFFLINE=1 to use what is cached"
        )
    if status in (401, 403):
        return MissingResourceError(
            f"{name}: the Hub forbids it ({said or f'status {status}'}); use a token that may read it"
        )
    return MissingResourceError(f"{name}: {endpoint()} answered with status {status} ({said}); see {url}")


def _page(name: HubName) -> str:
    return name.id if name.kind == "model" else f"datasets/{name.id}"


def endpoint() -> str:
    """The Hub's address for messages."""
    from huggingface_hub import constants

    return without_passwords(str(constants.ENDPOINT))


def without_passwords(text: str) -> str:
    """A text whose addresses show no names and passwords.

    >>> without_passwords("see http://me:secret@host/a")
    'see http://…@host/a'
    """
    return re.sub(r"(?<=://)[^/\s]*@", "…@", text)


def fetch_options(name: HubName) -> str:
    """The options of ``hf download`` for a name."""
    kind = " --repo-type dataset" if name.kind == "dataset" else ""
    return kind + (f" --revision {name.revision}" if name.revision else "")
