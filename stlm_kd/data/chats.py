"""Chats as text: messages rendered by a template, and the spans of it that the assistant says.

A chat is a list of messages, ``{"role": …, "content": …}``. A template is Jinja, as in ``transformers``,
which renders it in a sandbox: it can neither call functions nor change what it is given.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.data.bounded import bounded
from stlm_kd.data.text.marked import MarkedText
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import DataError, MissingResourceError, StlmKdError, first_line, foreign_errors, one_line
from stlm_kd.sharing.names import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template that ``chatml`` names: that of ChatML."""

STUDENT = "student"
"""In a recipe the name of the template of the student's tokenizer."""
TEMPLATES = ("chatml", STUDENT)

ASSISTANT = "assistant"
_LARGEST_TEMPLATE = 1 << 18
_MOST_CHARACTERS = 1 << 24
_MOST_MESSAGES = 1000

_CURES = {
    "from": "; rename from to role and value to content",
    "tool_calls": "; leave out chats that call tools, or write the call into the content",
    "content": "; join the parts of a content to one text",
}
"""What to do about a message of another form, by the first of these keys that it has."""

_MARK = "\ue000\ue001"
"""In place of the tags around what the assistant says, in a text that is being rendered."""
_TAG = re.compile(r"(\{%[-+]?)\s*(?:end)?generation\s*([-+]?%\})")

Chat: TypeAlias = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a source's chats are read: the column of the messages, and the template that renders them.

    ``template`` is ``chatml``, a file, or the name of a model or tokenizer that has one.
    """

    template: str
    messages: str = "messages"

    def template_text(self) -> str:
        """The template.

        Raises:
            DataError: A file that is too large or not UTF-8, or a tokenizer without a template.
            MissingResourceError: The file or the tokenizer cannot be read.
            ModelError: As ``load_tokenizer``.
        """
        name = self.template
        if name == "chatml":
            return CHATML
        if not expanded(name).is_file():
            found = load_tokenizer(name).chat_template
            if not isinstance(found, str):
                raise DataError(f"{name}: its tokenizer has no chat template; give chatml or a file")
            return found
        try:
            with expanded(name).open("rb") as file:
                content = file.read(_LARGEST_TEMPLATE + 1)
            if len(content) > _LARGEST_TEMPLATE:
                raise DataError(f"{name}: more than {_LARGEST_TEMPLATE:,} bytes; expected a template (Jinja)")
            return content.decode("utf-8")
        except OSError as error:
            message = f"{name}: cannot be read ({error.strerror or error}); give chatml or a file"
            raise MissingResourceError(message) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not UTF-8; expected a chat template (Jinja)") from error

    def identity(self) -> list[str]:
        """The column and a hash of the template."""
        return [self.messages, hashlib.sha256(self.template_text().encode()).hexdigest()]


def chat_text(messages: object, place: str) -> str:
    """A chat as canonical JSON, checked: the form in which sources stream it.

    Of each message only the role and the content are kept.

    Raises:
        DataError: Not a list of messages with a role and a text, or none of them is the assistant's.

    >>> chat_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "id": 3}], "x:1")
    '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'
    """
    expected = "expected a list of messages, {role: …, content: …}"
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise DataError(f"{place}: {one_line(messages) if messages else 'no message'} found; {expected}")
    if len(messages) > _MOST_MESSAGES:
        raise DataError(f"{place}: {len(messages):,} messages found; expected at most {_MOST_MESSAGES:,}")
    kept = []
    for number, message in enumerate(messages, start=1):
        found = message if isinstance(message, Mapping) else {}
        role, content = found.get("role"), found.get("content")
        if not (isinstance(role, str) and role and isinstance(content, str)):
            cure = next((cure for key, cure in _CURES.items() if key in found), "")
            raise DataError(f"{place}: message {number} is {one_line(message)}; {expected}, both texts{cure}")
        kept.append({"role": role, "content": content})
    if not any(message["role"] == ASSISTANT for message in kept):
        roles = ", ".join(dict.fromkeys(one_line(message["role"]) for message in kept))
        raise DataError(f"{place}: no message of the role {ASSISTANT} among {roles}; nothing to learn")
    chat = json.dumps(kept, ensure_ascii=False)
    try:
        chat.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: a lone surrogate, which UTF-8 cannot encode; remove it") from error
    return chat


def plain_text(chat: str) -> str:
    """What is said in a chat that ``chat_text`` gave, a message after the other."""
    return "\n".join(message["content"] for message in json.loads(chat))


def parts_of(chat: str) -> list[str]:
    """The roles and contents of a chat that ``chat_text`` gave, in turn."""
    return [text for message in json.loads(chat) for text in (message["role"], message["content"])]


def rendered(
    chats: Iterable[str], template: str, tokenizer: PreTrainedTokenizerFast, *, place: str
) -> Iterator[MarkedText]:
    """Render chats, which ``chat_text`` gave, and mark what the assistant says.

    A template may mark it itself (``{% generation %}``). Without such marks it is what the template adds to
    the messages before and the generation prompt, without white space at its end; it includes the token that
    ends a turn. A start and an end token around the whole are left out, since every document gets them.

    Raises:
        DataError: The template is malformed, calls functions, or renders messages differently when others
            follow; or a chat that begins with the assistant, for a template without marks.
    """
    if "strftime_now" in template:
        raise DataError(f"{place}: the chat template writes the time, which changes; write a date into it")
    write = _Renderer(template, tokenizer, place)
    for number, chat in enumerate(chats, start=1):
        write.chat = f"{place}: chat {number}"
        if _MARK in chat:
            raise DataError(f"{write.chat}: U+E000 U+E001 found, which mark texts here; remove them")
        with foreign_errors(write.unusable), bounded():
            marked = write.trimmed(write.marked(json.loads(chat)))
        yield marked


class _Renderer:
    """A template with the special tokens of a tokenizer; errors name the chat that was rendered last."""

    def __init__(self, template: str, tokenizer: PreTrainedTokenizerFast, place: str) -> None:
        self.template = _TAG.sub(lambda tag: f"{tag[1]} if true %}}{_MARK}{{% endif {tag[2]}", template)
        self.tokenizer, self.chat = tokenizer, place
        self.start, self.end = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    def marked(self, chat: Chat) -> MarkedText:
        text = self._text(chat)
        if _MARK in text:
            return _between_marks(text)
        spans = []
        for index, message in enumerate(chat):
            if message["role"] != ASSISTANT:
                continue
            if not index:
                raise DataError(f"{self.chat}: it begins with the {ASSISTANT}; put a message before it")
            before, after = self._text(chat[:index], prompt=True), self._until(chat[: index + 1], text)
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"{self.chat}: the template renders messages differently when others follow; "
                    "mark what the assistant says in it: {% generation %}…{% endgeneration %}"
                )
            spans.append((len(before), len(after)))
        return MarkedText(text, tuple(spans))

    def _until(self, chat: Chat, whole: str) -> str:
        """A part of a chat, with an end token only if the whole has one there."""
        text = self._text(chat).rstrip()
        shorter = text.removesuffix(self.end).rstrip()
        return text if whole.startswith(text) else shorter

    def trimmed(self, marked: MarkedText) -> MarkedText:
        """Without white space at its end, and the tokenizer's start and end tokens around it."""
        text = marked.text.rstrip()
        text = text.removesuffix(self.end)
        begin = len(self.start) if self.start and text.startswith(self.start) else 0
        spans = [(max(a - begin, 0), min(b, len(text)) - begin) for a, b in marked.spans]
        return MarkedText(text[begin:], tuple((a, b) for a, b in spans if a < b))

    def _text(self, chat: Chat, *, prompt: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            [{str(key): str(value) for key, value in message.items()} for message in chat],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        assert isinstance(text, str)
        if len(text) > _MOST_CHARACTERS:
            raise DataError(f"{self.chat}: {len(text):,} characters; expected at most {_MOST_CHARACTERS:,}")
        return text

    def unusable(self, error: BaseException) -> StlmKdError:
        """The error of a template that cannot render the chat."""
        return DataError(
            f"{self.chat}: the chat template cannot render it ({first_line(error)}); correct one of them"
        )


def _between_marks(text: str) -> MarkedText:
    """Every second piece between marks is the assistant's."""
    pieces, spans, kept = text.split(_MARK), [], ""
    for index, piece in enumerate(pieces):
        if index % 2 and piece:
            spans.append((len(kept), len(kept) + len(piece)))
        kept += piece
    return MarkedText(kept, tuple(spans))
