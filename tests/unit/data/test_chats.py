"""Chats: what is rendered, and what the assistant says, against the library's own masks and by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data import chats as chats_module
from stlm_kd.data.batch import IGNORED
from stlm_kd.data.batches import PackedRows
from stlm_kd.data.bounded import bounded
from stlm_kd.data.chats import CHATML, ChatFormat, chat_text, rendered
from stlm_kd.data.corpus import prepare
from stlm_kd.data.sources.sources import Source, documents, fingerprint
from stlm_kd.data.text.marked import MarkedText
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import TokenStore
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
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
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
        ([{"role": "assistant", "content": [{"type": "text"}]}], "both texts; join the parts"),
        ([{"from": "gpt", "value": "Hi"}], "both texts; rename from to role and value to content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "leave out chats that call tools"),
        ([USER, {**SAID, "content": "\ud800"}], "a lone surrogate"),
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
        ("{{ 'a' * 9999999999 }}", "more than 1,024 MiB of memory"),
        ("{{ ([1] * 10**9)|length }}", "more than 1,024 MiB of memory"),
        ("{% set n = messages|length %}{{ '%9999999999d'|format(n) }}", "more than 1,024 MiB of memory"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ strftime_now('%d') }}", "writes the time"),
        ("{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}", "{% generation %}"),
    ],
)
def test_a_template_that_calls_functions_or_cannot_be_used_is_one_message(template: str, found: str) -> None:
    with pytest.raises(DataError, match=r"^x: ") as error:
        mark([USER, SAID], template)
    assert found in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("template", [LOOPS, "{{ (7 * messages|length) ** (9 ** 9) }}"])
def test_a_template_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(chats_module, "bounded", lambda: bounded(seconds=0.3))
    with pytest.raises(
        DataError, match=r"^x: chat 1: the chat template cannot render it \(it takes more than"
    ):
        mark([USER, SAID], template)
    mark([USER, SAID], CHATML)


def test_a_chat_that_begins_with_the_assistant_needs_a_template_with_marks() -> None:
    with pytest.raises(DataError, match="begins with the assistant"):
        mark([SAID, USER, SAID], CHATML)
    assert said(mark([SAID, USER, SAID], MARKED)) == ["Ho" + str(TOKENIZER.eos_token), "Ho"]


def test_templates_are_named_given_as_files_or_those_of_tokenizers(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(MARKED, encoding="utf-8")
    assert ChatFormat("chatml").template_text() == CHATML
    assert ChatFormat(str(file)).template_text() == MARKED
    TOKENIZER.save_pretrained(tmp_path / "without")
    with pytest.raises(DataError, match="no chat template"):
        ChatFormat(str(tmp_path / "without")).template_text()
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        ChatFormat(str(file)).template_text()


def slow_mask(marked: MarkedText) -> list[bool]:
    """Whether each id of a marked text's document is predicted, by the characters of its token."""
    offsets = TOKENIZER(marked.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [any(a < end and b > begin for begin, end in marked.spans) for a, b in offsets]
    ends = any(end == len(marked.text) for _, end in marked.spans)
    return [False, *inside, ends]


@settings(max_examples=25, deadline=None)
@given(st.lists(chats, min_size=1, max_size=6), st.integers(2, 40), st.sampled_from([None, 5, 23]))
def test_rows_of_chats_have_labels_where_the_assistant_speaks(
    listed: list[list[dict[str, str]]], context: int, most: int | None
) -> None:
    marked = [mark(chat, CHATML) for chat in listed]
    masks = [flag for one in marked for flag in slow_mask(one)]
    with TemporaryDirectory() as folder:

        def build() -> TokenStore:
            where = Path(folder) / "store"
            return build_store(iter(marked), TOKENIZER, where, marked=True, most_tokens=most)

        if not any(masks[: most and most - 1]):
            with pytest.raises(DataError, match="nothing that the assistant says"):
                build()
            return
        store = build()
        masks = masks[: store.num_tokens]
        if most is not None and store.num_tokens == most:
            masks[-1] = masks[-1] and store.offsets[-1] == sum(
                len(slow_mask(one)) for one in marked[: store.num_documents]
            )
        assert store.is_predicted(np.arange(store.num_tokens)).tolist() == masks
        assert store.num_predicted == sum(masks)
        rows = PackedRows(store, context)
        batch = rows.batch(range(len(rows)))
        found: Counter[int] = Counter()
        for row in range(len(rows)):
            at = 0
            for begin, length in rows.chunks_of(row):
                for place in range(begin, begin + length):
                    after, label = place + 1, int(batch.labels[row, at])
                    ends = after in store.offsets
                    assert label == (
                        store.tokens[after] if after < len(masks) and not ends and masks[after] else IGNORED
                    )
                    found[place] += 1
                    at += 1
        assert found == dict.fromkeys(range(store.num_tokens), 1)


def test_bytes_are_those_of_what_is_said(tmp_path: Path) -> None:
    store = build_store(iter([mark([USER, SAID], CHATML)]), TOKENIZER, tmp_path / "store", marked=True)
    assert store.num_bytes == len("Ho<|im_end|>")
    assert TokenStore.open(tmp_path / "store").num_predicted == store.num_predicted


def test_the_key_of_chats_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("What these are.")
    file = tmp_path / "chats.json"
    prints = []
    for word in ("Ho", "Ha"):
        file.write_text(json.dumps([{"messages": [USER, {**SAID, "content": word}]}]))
        source = Source(path=str(tmp_path), chat=ChatFormat("chatml"))
        assert word in "".join(documents(source))
        prints.append(fingerprint(source))
    assert prints[0] != prints[1]
    assert source.entry.files(source.value, True) == [file]


def test_chats_under_tokenizers_with_other_special_tokens_have_other_stores(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [USER, SAID]}))
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ pad_token }}{{ m.content }}{% endfor %}")
    source = Source(path=str(tmp_path / "a.jsonl"), chat=ChatFormat(str(template)))
    stores = []
    for pad in ("<a>", "<b>"):
        tokenizer = byte_level()
        tokenizer._special_tokens_map["pad_token"] = pad
        (prepared,) = prepare([source], tokenizer, tmp_path / "stores")
        stores.append(prepared.store.folder)
    assert stores[0] != stores[1]
