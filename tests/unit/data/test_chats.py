"""Chats: what is rendered, and what the assistant says, against the library's own masks and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.chats import CHATML, MarkedText, chat_text, rendered, template_of
from stlm_kd.errors import DataError
from tests.support.tokenizer_kinds import byte_level

MARKED = (
    "{% for m in messages %}\n"
    "  {%- if m.role == 'assistant' %}A: {% generation %}\n"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}\n{% endfor %}"
)
ENDED = (  # an end token after all, which is not there while others follow
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% else %}{{ eos_token }}{% endif %}"
)
USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
TOKENIZER = byte_level()


def mark(messages: list[dict[str, str]], template: str) -> MarkedText:
    (found,) = rendered([chat_text(messages, "x:1")], template, TOKENIZER, place="x")
    return found


def said(marked: MarkedText) -> list[str]:
    return [marked.text[begin:end] for begin, end in marked.spans]


contents = st.text(st.characters(codec="utf-8", exclude_characters="\ue000"), max_size=9)
chats = st.lists(st.tuples(contents, contents), min_size=1, max_size=4).map(
    lambda turns: [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
)


@settings(max_examples=60, deadline=None)
@given(chats)
def test_what_the_assistant_says_ends_with_the_token_that_ends_its_turn(chat: list[dict[str, str]]) -> None:
    spoken = [message["content"] for message in chat if message["role"] == "assistant"]
    marked = mark(chat, CHATML)
    assert said(marked) == [f"{content}<|im_end|>" for content in spoken]
    whole = TOKENIZER.apply_chat_template(chat, chat_template=CHATML, tokenize=False)
    assert marked.text == whole.rstrip()


@settings(max_examples=60, deadline=None)
@given(chats)
def test_marks_of_a_template_are_those_that_the_library_finds(chat: list[dict[str, str]]) -> None:
    marked = mark(chat, MARKED)
    whole = TOKENIZER.apply_chat_template(chat, chat_template=MARKED, tokenize=False)
    assert whole == marked.text + TOKENIZER.eos_token
    encoded = TOKENIZER.apply_chat_template(
        chat, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    offsets = TOKENIZER(marked.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    own = [any(a < end and b > begin for begin, end in marked.spans) for a, b in offsets]
    theirs = [bool(found) for found in encoded["assistant_masks"]]
    assert [*own, True] == theirs  # the last end token is the document's


def test_an_end_token_that_only_the_last_turn_has_is_the_documents() -> None:
    marked = mark([USER, SAID, USER, SAID], ENDED)
    assert marked.text == "[user]Hi\n[assistant]Ho\n[user]Hi\n[assistant]Ho\n"
    assert said(marked) == ["Ho", "Ho\n"]  # the last line end stands before the document's end token


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], "no message found"),
        ("Hi", "Hi found"),
        ([USER], "no message of the role assistant among user"),
        ([USER, "Ho"], "message 2 is Ho"),
        ([{"role": "assistant"}], "message 1 is"),
        ([{"role": "assistant", "content": [{"type": "text"}]}], "both texts"),
        ([USER, SAID] * 501, "1,002 messages"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_place(messages: object, found: str) -> None:
    with pytest.raises(DataError, match=r"^x:1: ") as error:
        chat_text(messages, "x:1")
    assert found in str(error.value)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "unsafe"),
        ("{% for x in range(10**9) %}{% endfor %}", "too big"),
        ("{% if %}", "cannot render it"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ strftime_now('%d') }}", "writes the time"),
        ("{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}", "{% generation %}"),
    ],
)
def test_a_template_that_calls_functions_or_cannot_be_used_is_one_message(template: str, found: str) -> None:
    with pytest.raises(DataError, match=r"^x: ") as error:
        mark([USER, SAID], template)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_a_chat_that_begins_with_the_assistant_needs_a_template_with_marks() -> None:
    with pytest.raises(DataError, match="begins with the assistant"):
        mark([SAID, USER, SAID], CHATML)
    assert said(mark([SAID, USER, SAID], MARKED)) == ["Ho" + str(TOKENIZER.eos_token), "Ho"]


def test_templates_are_named_given_as_files_or_the_tokenizers_own(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(MARKED, encoding="utf-8")
    assert template_of("chatml", TOKENIZER) == CHATML
    assert template_of(str(file), TOKENIZER) == MARKED
    with pytest.raises(DataError, match="no chat template"):
        template_of(None, TOKENIZER)
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        template_of(str(file), TOKENIZER)
    assert json.loads(chat_text([USER, SAID], "x")) == [USER, SAID]
