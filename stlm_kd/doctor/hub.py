"""Whether the Hub answers, and knows the token."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from stlm_kd.doctor.finding import Finding
from stlm_kd.errors import first_line
from stlm_kd.sharing.failures import endpoint, without_passwords
from stlm_kd.sharing.hub import is_offline

LIMIT_S = 5.0


def check_hub(*, offline: bool) -> Iterator[Finding]:
    """One request, by whose answer the token is known or not; the token itself is never shown."""
    if offline or is_offline():
        yield Finding("Hub", "ok", "not asked: offline")
        return
    answers: list[Finding] = []
    asking = threading.Thread(target=lambda: answers.append(_asked()), daemon=True)
    asking.start()
    asking.join(LIMIT_S + 1)  # looking up a name has no limit of its own
    yield answers[0] if answers else _unreachable(f"no answer within {LIMIT_S:.0f} s")


def _asked() -> Finding:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but left out of __all__
        build_hf_headers,
        get_session,
    )

    token = get_token()
    path = "whoami-v2" if token else "models?limit=1"
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/{path}",
            headers=build_hf_headers(token=token or False),
            timeout=LIMIT_S,
        )
        status = answer.status_code
        user = answer.json().get("name") if token and status == 200 else None
    except Exception as error:  # of the HTTP library, which differs between releases
        reason = first_line(error) or type(error).__name__
        return _unreachable(reason.replace(token, "…") if token else reason)
    if status in (401, 403) and token:
        cure = "hf auth login, or set HF_TOKEN to a valid token, or unset it"
        return Finding("Hub", "fault", f"{endpoint()} does not accept the token ({status})", cure)
    if status != 200:
        return _unreachable(f"status {status}")
    return Finding("Hub", "ok", f"{endpoint()}, {f'as {user}' if user else 'without a token'}")


def _unreachable(reason: str) -> Finding:
    cure = "check the network, the proxy and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what is cached"
    return Finding("Hub", "warning", f"{endpoint()} cannot be reached ({without_passwords(reason)})", cure)
