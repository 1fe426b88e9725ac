"""Addresses of recipes: read, written, and refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import UsageError
from stlm_kd.sharing.address import GitAddress, HubAddress, RemoteAddress, WebAddress, parse_address

NAME = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("datasets", "models", "spaces")
)
FILE = st.lists(NAME, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".yaml")
REVISION = st.none() | st.from_regex(r"[a-z0-9]+([./_+-][a-z0-9]+){0,2}", fullmatch=True)
ADDRESS = st.one_of(
    st.builds(
        HubAddress, st.tuples(NAME, NAME).map("/".join), st.sampled_from(["model", "dataset"]), REVISION, FILE
    ),
    st.builds(
        WebAddress,
        st.tuples(NAME, FILE).map(lambda it: "https://h.org/{}/{}".format(*it)),
        st.none() | st.just("a" * 64),
    ),
    st.builds(
        GitAddress,
        st.tuples(st.sampled_from(["https://", "ssh://git@", "ssh://"]), NAME).map(
            lambda it: f"{it[0]}host:22/{it[1]}"
        ),
        REVISION,
        FILE,
    ),
)


@given(ADDRESS)
def test_an_address_is_read_as_it_is_written(address: RemoteAddress) -> None:
    assert parse_address(str(address)) == address


@given(st.text() | st.text("hftpsgi+:/@#.%a-z", max_size=30))
def test_any_text_is_an_address_that_survives_a_round_trip_a_local_name_or_refused(text: str) -> None:
    try:
        found = parse_address(text)
    except UsageError as error:
        assert str(error).split(":")[0].isascii()
        return
    assert (found is None) == ("://" not in text)
    assert found is None or (parse_address(str(found)) == found and text.isascii())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", HubAddress("a/b")),
        ("hf://a/b@refs%2Fpr%2F1/t/x.yaml", HubAddress("a/b", "model", "refs/pr/1", "t/x.yaml")),
        ("hf://datasets/a/b@v1", HubAddress("a/b", "dataset", "v1")),
        ("https://h.org/x.yaml#sha256=" + "AB" * 32, WebAddress("https://h.org/x.yaml", "ab" * 32)),
        ("git+https://h.org/a/b.git@v1#x.yaml", GitAddress("https://h.org/a/b.git", "v1", "x.yaml")),
        ("git+ssh://git@h.org/a@feature/x", GitAddress("ssh://git@h.org/a", "feature/x")),
        ("git+file:///tmp/a", GitAddress("file:///tmp/a")),
        ("tiny.yaml", None),
        ("C:\\recipes\\tiny.yaml", None),
    ],
)  # fmt: skip
def test_the_parts_of_an_address(text: str, expected: RemoteAddress | None) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf://a", "hf://a/b/../x.yaml", "hf://a/b/.x.yaml", "hf://a/b/x.py", "hf://a/b@", "hf://a/b@..",
        "hf://a/b@%2e%2e", "hf://a/b@-x", "hf://datasets/a", "hf://spaces/a/b", "hf://a/b\u202e", "hf://\u0430/b",
        "http://h/x.yaml", "https:///x.yaml", "https://u:p@h/x.yaml", "https://h/x.yaml?token=1", "https://h/x.txt",
        "https://h/x.yaml#sha256=12", "https://h/x.yaml#x", "https://h/ x.yaml", "git+https://u:p@h/x",
        "git+ssh://u:p@h/x", "git+ssh://-oProxyCommand=x/y", "git+https://h/x@--upload-pack=y", "git+https://h/x@a..b",
        "git+https://h/x#../x.yaml", "git+ext::sh -c x://y", "git+http://h/x", "ssh://h/x", "file:///x.yaml", "://",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_in_one_message(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a recipe; expected hf://USER/REPO") as caught:
        parse_address(text)
    assert re.fullmatch(r"[\x20-\x7e…]*", str(caught.value))
