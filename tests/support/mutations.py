"""Seeded mutations of recipes, overrides and JSON files, and what every answer to them must be."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from stlm_kd.errors import RecipeError, StlmKdError

TIMES = int(os.environ.get("STLM_KD_FUZZ", "1"))
"""How many times as many cases as usual."""

LONGEST_S = 5.0
"""Seconds after which a case hangs."""

Tree = Any  # what JSON holds

TEXTS = (
    "", " ", "0", "-1", "null", "true", "~", "~nosuchuser/x", "~/x", "$UNSET/x", "${", "$", "..",
    "../../etc", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "a" * 300, "a/" * 2000, "x" * 5000, "hub:",
    "hub:a/b@", "org/name@../x", "a@b@c", "hf://", "https://", "git+https://x", "hf://a/b#..", "hf://[::1",
    "https://[", "file:///etc/passwd", "train", "auto", "bpe", "\u202eevil", "\x00", "\x1b[2J", "\ud800",
    "\U0010ffff", "é", "\uff11", "naïve ", "a: b", "{", "[1", "*x", "&x", "!!str", "'", '"', "%YAML", "@",
    "`", "-", "- -", "1e999", "1__0", "0x10", "0o7", "1:30", "2001-01-01", ".inf", ".nan", "9" * 5000,
    "5000000000B", "1.5k", "1e400k", "lm-eval", "label", "mean", "forward-kl", "default", "con", "nul\\x",
    "C:\\x", "x.yaml", "recipe.yaml", "sample-two-teachers", "\n", "a\nb", "\u2028", "\ufeff",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**32, 2**63, 2**64, 10**30, 10**39, 10**400, -(10**30), 0.0, -0.0, 0.5,
    1.0, 1.5, 1e-300, 5e-324, 1e308, float("inf"), float("-inf"), float("nan"), 1e15, 1e16, 1e22,
)  # fmt: skip
KEYS = (
    "", " ", "name", "model", "recipe", "extends", "sweep", "0", "-", "a.b", "a[0]", "\u202e", "\x00",
    "k" * 400, "__class__", "model_config", "null", "é", "on",
)  # fmt: skip


def random_value(draw: random.Random, depth: int = 0) -> Tree:
    """A value of any kind, mostly out of place."""
    kind = draw.randrange(10 if depth < 3 else 7)
    if kind < 3:
        return draw.choice(TEXTS)
    if kind < 5:
        return draw.choice(NUMBERS)
    if kind < 7:
        return draw.choice((None, True, False))
    if kind == 7:
        return [random_value(draw, depth + 1) for _ in range(draw.choice((0, 1, 2, 5)))]
    if kind == 8:
        return {draw.choice(KEYS): random_value(draw, depth + 1) for _ in range(draw.choice((0, 1, 2)))}
    deep: Tree = draw.choice((0, "x"))
    for _ in range(draw.choice((2, 10, 40))):
        deep = [deep] if draw.random() < 0.5 else {"a": deep}
    return deep


def places(tree: Tree) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        one = pending.pop()
        if isinstance(one, (dict, list)):
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            pending += [one[key] for key in keys]
    return found


def mutated(tree: Tree, draw: random.Random) -> Tree:
    """A copy with one to three changes: of types, keys, values, nesting and lengths."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = places(tree)
        if not found:
            return random_value(draw)
        holder, key = draw.choice(found)
        value = holder[key]
        kind = draw.randrange(9)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = [value] if draw.random() < 0.5 else {draw.choice(KEYS): value}
        elif kind == 2 and isinstance(holder, dict):
            holder[draw.choice((*KEYS, str(key)[:-1], f"{key}x"))] = random_value(draw)
        elif kind == 3 and isinstance(holder, dict):
            holder[draw.choice(KEYS)] = holder.pop(key)
        elif kind == 4 and isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = draw.choice((str(value), -value, value * 10**6, value + 0.5, [value, value]))
        elif kind == 4 and isinstance(value, str):
            cut = draw.randrange(len(value) + 1)
            holder[key] = value[:cut] + draw.choice(TEXTS) + value[cut:]
        elif kind == 5:
            other, at = draw.choice(found)
            holder[key] = copy.deepcopy(other[at])
        elif kind == 6 and isinstance(holder, list):
            holder *= draw.choice((0, 2, 30))
        else:
            holder[key] = random_value(draw)
    return tree


TRICKS = (
    "a: &x 1\nb: *x", "<<: {a: 1}", "a: !!python/object:os.system x", "a: !!int x", "? [a]\n: b",
    "? {a: b}\n: c", "---\n---\n", "--- a", "...\nb", "%YAML 9.9\n---\n", "%TAG ! x\n---", "\t", "\ta: b",
    "a: 'x", 'a: "\\ud800"', 'a: "\\U00110000"', 'a: "\\xZZ"', 'a: "\\UFFFFFFFF"', "\x00", "\x07", "\x85",
    "\u2028", "\ufeff", "\ufffe", "[" * 3000, "{a: " * 3000, "- " * 3000, "? " * 500, "a: b: c", "- a\nb: c",
    "a: |\n x\n y", "a: >9\n x", "a: |0\n", "'a': 1\n\"a\": 2", "a: [1, 2", "}", "]", ",", "- ", ": ",
    "#" * 9, "a: @x", "a: `x", "!", "!<", "&", "*", "| ", "a:\n  - b\n c: d", f"a: {'9' * 6000}",
    "k" * 1100 + ": 1", f"a: {'x' * 300000}", "\r", "\r\n\r", "a: 1\ra: 2", "sweep: {a: [1]}",
    "extends: recipe.yaml", "extends: [a]", "extends: sample-two-teachers", "objectives: diito",
    "objectives: nosuch", "teachers: sample-two-teachers", "teachers: [{name: a, recipe: x}]",
)  # fmt: skip


def mutated_text(text: str, draw: random.Random) -> str:
    """A text with one to three changes of lines and characters."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        at = draw.randrange(len(lines))
        kind = draw.randrange(8)
        if kind < 3:
            lines.insert(at, draw.choice(("", "  ", "    ")) + draw.choice(TRICKS))
        elif kind == 3:
            lines[at] = draw.choice((" ", "  ", "\t", "- ", "? ")) + lines[at]
        elif kind == 4:
            lines[at] = lines[at] + draw.choice(TRICKS)
        elif kind == 5:
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind == 6:
            del lines[at : at + draw.choice((1, 2, 9))]
        else:
            cut = draw.randrange(len(lines[at]) + 1)
            sign = chr(draw.choice((0, 9, 34, 39, 58, 92, 123, 133, 160, 0x202E, 0xFEFF, 0x10FFFF)))
            lines[at] = lines[at][:cut] + sign + lines[at][cut + draw.randrange(2) :]
        text = "\n".join(lines)
    return text


class Hung(BaseException):
    """A case took more than ``LONGEST_S`` of the processor, or six times that in all; no guard catches it."""


@contextmanager
def within_time() -> Iterator[None]:
    def hung(_: int, frame: FrameType | None) -> None:
        raise Hung(f"more than {LONGEST_S:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 6))
    before = [signal.signal(kind, hung) for _, kind, _ in timers]
    for timer, _, times in timers:
        signal.setitimer(timer, times * LONGEST_S)
    try:
        yield
    finally:
        for (timer, kind, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(kind, handler)


MOST_LINES, LONGEST_LINE = 25, 1200


def wrong_message(error: StlmKdError) -> str | None:
    """Why an error's message does not do; None if it does."""
    text = str(error)
    lines = text.splitlines()
    if not lines or len(lines) > MOST_LINES:
        return f"{len(lines)} lines"
    if max(map(len, lines)) > LONGEST_LINE:
        return f"a line of {max(map(len, lines))} characters"
    if isinstance(error, RecipeError):
        if not error.origin or not error.faults:
            return "no origin or no fault"
        if error.faults and any(not fault.message.strip() for fault in error.faults):
            return "an empty fault"
        return None
    if not re.match(r"[^\n]{1,900}?:(\n| \S)", text):
        return "no place"
    return None


def answer(work: Callable[[], Any]) -> tuple[str, Any]:
    """What a case gives: ``fine`` and the result, ``refused`` and the error, or ``wrong`` and why."""
    try:
        with within_time():
            return "fine", work()
    except StlmKdError as error:
        wrong = wrong_message(error)
        return ("refused", error) if wrong is None else ("wrong", f"{wrong}: {str(error)[:300]!r}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-6:]
        ]
        return "wrong", f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(reversed(frames))}"


def wrong_answers(case: Callable[[int], tuple[object, Callable[[], Any]]], begin: int, end: int) -> list[str]:
    """The number, the input and the fault of each case in a range that is not answered as it must be."""
    found = []
    for number in range(begin, end):
        given, work = case(number)
        kind, what = answer(work)
        if kind == "wrong":
            found.append(f"case {number}: {what}\n{str(given)[:2000]}")
    return found


def override_keys(tree: Tree) -> list[str]:
    """The dotted key of every value of a tree."""

    def walk(value: Tree, place: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{place}.{key}" if place else str(key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from walk(inner, f"{place}[{index}]")
        if place:
            yield place

    return [*walk(tree, "")]


ODD_KEYS = (
    "", "=", ".", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a[9]" * 200, "train." + "9" * 5000,
    f"seeds[{'9' * 5000}]", "seeds[0].x", "train.steps.x", "teachers[0].recipe.train.steps",
    "teachers.0.recipe.teachers.0.recipe.task", "eval[0].limit", "eval.0", "data.train.path",
    "data.train[0].column", "objectives[0].weight", "objectives.x", "sweep.a", "extends", "é.b", "a-b",
    "A" * 3000, "a." * 900 + "a", "\uff11", "seeds[\uff11]", "train[0]",
)  # fmt: skip


def odd_override(keys: list[str], draw: random.Random) -> str:
    """``key=value`` with a key or a value that is out of place."""
    key = draw.choice(keys if draw.random() < 0.7 else ODD_KEYS)
    value = random_value(draw)
    written = json.dumps(value) if draw.random() < 0.5 else str(value)
    if draw.random() < 0.15:
        written = draw.choice(TRICKS)
    return f"{key}{draw.choice(('=', '=', '=', '=', '', '==', ': '))}{written}"
