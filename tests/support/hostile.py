"""Malicious recipes: folders on a Hub, and a program that fetches them all and reports what came of each.

``python -m tests.support.hostile`` reads names of repositories from its standard input and writes JSON: for
each the error's class and message, or None, and the files that were kept.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GOOD = """task: clm
student: {tokenizer: org/tok, preset: stlm-47m}
data: {train: {path: data/train.txt}, validation: {path: data/held-out.txt}, context: 64}
objectives: [{loss: labels}]
train: {steps: 10}
"""
TEXT = {"data/train.txt": b"One two three.\n", "data/held-out.txt": b"Four five six.\n"}
FOLDER: Mapping[str, bytes] = {"recipe.yaml": GOOD.encode(), "README.md": b"# A recipe\n", **TEXT}
HASH, COMMIT = "sha256:" + "a" * 64, "1" * 40
LOCK = f"format: 1\nrecipe: {HASH}\nmade: {{by: stlm-kd 0.2.0}}\n"


@dataclass(frozen=True)
class Hostile:
    """One malicious folder: files beside (or in place of) those of a good one, and what its refusal says.

    ``is_data``: plain data that ask for too much; refused when they are read, so they may be in the cache.
    """

    name: str
    files: Mapping[str, bytes]
    says: str
    is_data: bool = False


class Payload:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch unpickled",)


def _recipe(text: str) -> dict[str, bytes]:
    return {"recipe.yaml": text.encode()}


def _with(line: str, *, without: str = "") -> dict[str, bytes]:
    """The good recipe with a further line, and without the line that begins so."""
    kept = [row for row in GOOD.splitlines() if not (without and row.startswith(without))]
    return _recipe("\n".join([*kept, line, ""]))


def _model(revision: str) -> bytes:
    """A lock with a model at a revision."""
    return f"{LOCK}models: {{a: {{id: a/b, asked: {revision}, commit: '{COMMIT}'}}}}\n".encode()


def _names() -> list[tuple[str, list[str], str]]:
    """Names in listings: the case, the paths, the message."""
    return [
        ("parent", ["../evil.yaml"], "leaves its folder"),
        ("grandparent", ["../../.ssh/authorized_keys"], "leaves its folder"),
        ("parent inside", ["data/../../evil.txt"], "leaves its folder"),
        ("dot", ["./evil.yaml"], "leaves its folder"),
        ("empty part", ["data//evil.txt"], "leaves its folder"),
        ("absolute", ["/etc/evil.yaml"], "absolute"),
        ("home", ["~/evil.yaml"], "absolute"),
        ("backslash", ["data\\..\\..\\evil.txt"], "backslash"),
        ("drive", ["C:/evil.yaml"], "drive"),
        ("drive without a slash", ["c:evil.yaml"], "drive"),
        ("stream", ["recipe.yaml:hidden"], "colon"),
        ("con", ["con.yaml"], "reserve"),
        ("nul in data", ["data/NUL.txt"], "reserve"),
        ("com1", ["data/com1.csv"], "reserve"),
        ("dot at the end", ["evil.yaml."], "reserve"),
        ("space at the end", ["evil.yaml "], "reserve"),
        ("bidirectional", ["data/\u202etxt.exe"], "bidirectional"),
        ("zero width", ["rec\u200bipe.yaml"], "invisible"),
        ("line break", ["evil\n.yaml"], "control"),
        ("terminal escape", ["\x1b[2Jevil.yaml"], "control"),
        ("null", ["evil\0.yaml"], "control"),
        ("lone surrogate", ["evil\ud800.yaml"], "control"),
        ("private use", ["evil\ue000.yaml"], "control"),
        ("git folder", [".git/config"], "git folder"),
        ("git folder in capitals", [".GIT/hooks/post-checkout"], "git folder"),
        ("git folder's short name", ["GIT~1/config"], "git folder"),
        ("twin in case", ["Recipe.yaml"], "same name"),
        ("twin of the readme", ["readme.MD"], "same name"),
        ("twin folders", ["Data/more.txt"], "same name"),
        ("twin of a folder", ["DATA"], "same name"),
        ("twin in Unicode form", ["data/\u00e9.txt", "data/e\u0301.txt"], "same name"),
        ("twin by compatibility", ["\ufb01le.yaml", "file.yaml"], "same name"),
        ("twin by folding", ["stra\u00dfe.yaml", "strasse.yaml"], "same name"),
        ("homoglyph of recipe.yaml", ["r\u0435cipe.yaml"], "beyond ASCII"),
        ("long name", ["x" * 300 + ".yaml"], "too long"),
        ("deep name", ["d/" * 20 + "x.yaml"], "too deep"),
    ]


@cache
def _pickled() -> bytes:
    return pickle.dumps(Payload())


@cache
def _bomb() -> bytes:
    return gzip.compress(b" " * (1 << 20), 1) * 200


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled())
    return packed.getvalue()


def _contents() -> list[Hostile]:
    mega = bytes(1 << 20)
    ten = b"x" * (10 << 20)
    results = b'{"results": []}'
    swapped = LOCK + f"results: sha256:{hashlib.sha256(results).hexdigest()}\n"
    return [
        Hostile("huge recipe", {"recipe.yaml": b"#" * 300_000}, "expected at most 262,144"),
        Hostile("huge lock", {"recipe.lock": mega * 3}, "expected at most 2,097,152"),
        Hostile("huge data", {"data/x.txt": ten + b"x"}, "expected at most 10,485,760"),
        Hostile("huge results", {"results.json": mega * 65}, "expected at most 67,108,864"),
        Hostile("huge in all", {f"data/{i}.txt": ten for i in range(13)}, "bytes to fetch"),
        Hostile("many files", {f"data/{i}.txt": b"x" for i in range(220)}, "files to fetch"),
        Hostile("huge listing", {f"x/{i}": b"" for i in range(10_050)}, "more than 10,000 files"),
        Hostile("pickle as text", {"data/x.txt": _pickled()}, "binary content"),
        Hostile("pickle as recipe", {"recipe.yaml": _pickled()}, "binary content"),
        Hostile("pickle as card", {"README.md": _pickled()}, "binary content"),
        Hostile("pickle as results", {"results.json": _pickled()}, "binary content"),
        Hostile("checkpoint as table", {"data/x.csv": _zip()}, "binary content|null characters"),
        Hostile("compressed pickle", {"data/x.txt.gz": gzip.compress(_pickled())}, "binary content"),
        Hostile("text pickle as recipe", {"recipe.yaml": pickle.dumps(Payload(), 0)}, "not a mapping"),
        Hostile("bomb", {"data/x.txt.gz": _bomb()}, "when decompressed"),
        Hostile("not compressed", {"data/x.txt.gz": b"text"}, "(?i)not a gzip"),
        Hostile("truncated", {"data/x.txt.gz": gzip.compress(bytes(1000))[:-9]}, "ended"),
        Hostile("reordered comment", _with("# \u202eevil"), r"u202e\) reorders what is read"),
        Hostile("UTF-16", {"recipe.yaml": GOOD.encode("utf-16")}, "binary content"),
        Hostile("null characters", {"README.md": b"a\0b"}, "null characters"),
        Hostile("results that are no JSON", {"results.json": b"__import__('os')"}, "not JSON"),
        Hostile("deep results", {"results.json": b"[" * 100_000}, "not JSON"),
        Hostile("tag", _with("seeds: !!python/object/apply:os.system ['touch unpickled']"), "tag"),
        Hostile("tag in the lock", {"recipe.lock": (LOCK + "seeds: !!set {1}\n").encode()}, "tag"),
        Hostile("aliases", _recipe("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n"), "anchors and aliases"),
        Hostile("merge key", _recipe("a: {x: 1}\nb: {<<: *a}\n"), "anchors and aliases"),
        Hostile("deep nesting", _recipe("a: " + "[" * 1000), "nested more than"),
        Hostile("repeated key", _with("task: mlm"), "given twice"),
        Hostile("two documents", _with("---\ntask: mlm"), "second document"),
        Hostile(
            "unknown key in the lock", {"recipe.lock": f"{LOCK}run: sh\n".encode()}, "not a key of a lock"
        ),
        Hostile("homoglyph in the lock", {"recipe.lock": f"{LOCK}s\u0435eds: [1]\n".encode()}, "u0435eds"),
        Hostile(
            "escape in the lock",
            {"recipe.lock": LOCK.replace("0.2.0", '"\\e[2J"', 1).encode()},
            "made.by|not YAML",
        ),
        Hostile("lock of another format", {"recipe.lock": b"format: 99\n"}, "reads format 1"),
        Hostile(
            "short commit",
            {"recipe.lock": f"{LOCK}models: {{a: {{id: a/b, commit: abc}}}}\n".encode()},
            "models.a.commit",
        ),
        Hostile("path as revision in the lock", {"recipe.lock": _model("../../x")}, "models.a.asked"),
        Hostile("absolute revision in the lock", {"recipe.lock": _model("/home/x")}, "models.a.asked"),
        Hostile("swapped results", {"results.json": b"{}", "recipe.lock": swapped.encode()}, "another run"),
    ]


def _foreign() -> list[tuple[str, dict[str, bytes], str]]:
    """Recipes that are plain data and ask for too much: the case, the files, the message."""

    def data(source: str) -> dict[str, bytes]:
        return _with(f"data: {{train: {source}, context: 64}}", without="data")

    def student(words: str) -> dict[str, bytes]:
        return _with(f"student: {{tokenizer: org/tok, {words}}}", without="student")

    def teacher(words: str) -> dict[str, bytes]:
        return _with(f"teachers: [{{name: t, {words}}}]")

    architecture = "architecture: {model_type: llama, %s}"
    return [
        ("reads a key", data("{path: ~/.ssh/id_rsa}"), "inside the recipe's folder"),
        ("reads a bare path", data("/etc/passwd"), "inside the recipe's folder"),
        ("reads one of a list", data("[data/train.txt, ../secret.txt]"), "leaves the recipe's folder"),
        ("reads beside data", data("data/../../secret.txt"), "leaves the recipe's folder"),
        ("reads a variable", data("{path: $AWS_SECRET_ACCESS_KEY}"), "variables are not filled in"),
        ("reads a variable in braces", data('{path: "data/${HOME}/x.txt"}'), "variables are not filled in"),
        ("reads a drive", data("'C:\\secret.txt'"), "inside the recipe's folder"),
        ("reads a share", data("'\\\\host\\share\\x.txt'"), "inside the recipe's folder"),
        ("reads with backslashes", data("'data\\..\\..\\x.txt'"), "leaves the recipe's folder"),
        ("reads an address", data("{path: 'file:///etc/passwd'}"), "addresses are only for recipes"),
        ("a folder as data set", data("{hub: secret-folder}"), "USER/NAME"),
        ("a builder as data set", data("{hub: csv, name: x}"), "USER/NAME"),
        ("an address as data set", data("{hub: 'http://127.0.0.1/x'}"), "addresses are only"),
        ("escape in a path", data('{path: "a\\e[2Jb.txt"}'), "control or invisible"),
        ("bidirectional in a path", data('{path: "a\u202eb.txt"}'), "control or invisible"),
        (
            "local tokenizer",
            _with("student: {tokenizer: ~/tok, preset: stlm-47m}", without="student"),
            "folder",
        ),
        ("local student", student("model: ../../model"), "leaves the recipe's folder"),
        ("kernel", student(architecture % "attn_implementation: kernels-community/flash"), "run code"),
        ("kernel under another key", student(architecture % "attention: evil/kernel"), "code on the Hub"),
        ("kernels", student(architecture % "use_kernels: true"), "run code"),
        ("own code", student(architecture % "auto_map: modeling_evil.Evil"), "run code"),
        ("trusts code", student(architecture % "trust_remote_code: true"), "run code"),
        ("local teacher", teacher("model: /models/private"), "inside the recipe's folder"),
        ("teacher's cache", teacher("model: org/t, cache: outputs"), "folder of this machine"),
        ("path of a cache", teacher("model: org/t, cache: {path: outputs}"), "folder of this machine"),
        ("teacher's recipe", teacher("recipe: ../../other.yaml"), "leaves the recipe's folder"),
        ("teacher's recipe over http", teacher("recipe: 'http://host/x.yaml'"), "no address of a recipe"),
        ("teacher's recipe without hash", teacher("recipe: 'https://host/x.yaml'"), "#sha256"),
        ("teacher's recipe over ssh", teacher("recipe: 'git+ssh://host/x'"), r"expected git\+https"),
        ("teacher's recipe on this disk", teacher("recipe: 'git+file:///home'"), r"expected git\+https"),
        ("teacher within a teacher", teacher("recipe: {teachers: [{name: u, model: ~/m}]}"), "inside"),
        ("extends a file", _with("extends: /etc/passwd"), "inside the recipe's folder"),
        ("tracking", _with("tracking: [wandb]"), "send data to a service"),
        (
            "sweep over paths",
            _with("sweep: {x: [{data.train.path: ~/a}, {seeds: [1]}]}"),
            "inside the recipe",
        ),
        ("sweep over services", _with("sweep: {x: [{'tracking': [wandb]}, {seeds: [1]}]}"), "to a service"),
        (
            "sweep over data sets",
            _with("sweep: {x: [{'data.train[0].hub': csv}, {seeds: [1]}]}"),
            "USER/NAME",
        ),
        ("homoglyph key", _with("t\u0435achers: []"), "beyond ASCII"),
        ("tasks of lm-eval", _with("eval: [{suite: lm-eval, tasks: [../../tasks]}]"), "leaves the recipe's"),
    ]


def corpus() -> list[Hostile]:
    """All malicious folders."""
    named = [Hostile(name, dict.fromkeys(paths, b"x\n"), says) for name, paths, says in _names()]
    asking = [Hostile(name, files, says, is_data=True) for name, files, says in _foreign()]
    return [*named, *_contents(), *asking]


def fetch_and_check(repo: str, cache: Path) -> dict[str, object]:
    """Fetch a recipe and check what it asks for, as a command would before it reads anything else."""
    from stlm_kd.errors import RecipeError, StlmKdError
    from stlm_kd.recipe.foreign import check_fetched, foreign_faults
    from stlm_kd.recipe.yaml import parse
    from stlm_kd.sharing.address import parse_address
    from stlm_kd.sharing.fetch import fetch

    address = parse_address(f"hf://{repo}")
    assert address is not None
    try:
        found = fetch(address, cache=cache, check=check_fetched)
        faults = foreign_faults(parse(found.file.read_text(), origin=str(found.origin)))
        if faults:
            raise RecipeError(str(found.origin), faults)
    except StlmKdError as error:
        return {"error": type(error).__name__, "message": str(error), "code": error.exit_code}
    return {"error": None, "message": str(found.origin), "code": 0}


def main() -> None:
    cache = Path("cache")
    told = {}
    for repo in json.load(sys.stdin):
        before = {path for path in Path().rglob("*") if path.is_file()}
        told[repo] = fetch_and_check(repo, cache)
        kept = {path for path in Path().rglob("*") if path.is_file()} - before
        told[repo]["kept"] = sorted(path.as_posix() for path in kept if path.name != ".lock")
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
