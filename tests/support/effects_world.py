"""What the recipes of ``field_effects`` name: texts, examples, tokenizers and models in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stages.teacher_cache import CacheJob
from stlm_kd.recipe import load
from tests.support.field_effects import BASES
from tests.support.pico import pico_model

WIDE: dict[str, str | int] = {
    "model_type": "bert",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
"""A teacher that is wider and deeper than the students."""


def build(folder: Path) -> None:
    """Write all that the base recipes name, and what their changes name."""
    texts = list(sample_documents("train", size=40_000, seed=1))
    parts = {"a.txt": texts[::2], "b.txt": texts[1::4], "c.txt": texts[3::4]}
    (folder / "deepspeed.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000}}')
    for name, documents in parts.items():
        (folder / name).write_text("\n\n".join(documents), encoding="utf-8")
    pairs = [
        {"one": one, "two": two, "judged": i % 2, "other": i // 2 % 2}
        for i, (one, two) in enumerate(zip(texts[:40], texts[40:80], strict=True))
    ]
    for name, rows in (("pairs.jsonl", pairs), ("held.jsonl", pairs[1:])):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shards = [[*texts[:6], "Short .", texts[0]], texts[6:12], texts[12:18]]
    rows = [
        [{"text": text, "language": "de" if i % 3 else "en"} for i, text in enumerate(one)] for one in shards
    ]
    (folder / "shards").mkdir()
    for i, one in enumerate(rows):
        (folder / f"shards/{i}.jsonl").write_text("\n".join(map(json.dumps, one)), encoding="utf-8")
    held = [*rows[2][:2], {"text": texts[20]}]
    (folder / "held-text.jsonl").write_text("\n".join(map(json.dumps, held)), encoding="utf-8")
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in texts
    ]
    told = [{"messages": chat, "told": chat[::-1] + chat[1:]} for chat in chats[:20]]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    marks = "{% generation %}{{ m.content }}{% endgeneration %}"
    template = f"{{% for m in messages %}}{{{{ m.role }}}}: {marks}\n{{% endfor %}}"
    (folder / "chat.jinja").write_text(template, encoding="utf-8")
    own, other = (train_tokenizer(texts, size=size) for size in (300, 310))
    own.save_pretrained(folder / "some/tokenizer")
    other.save_pretrained(folder / "other/tokenizer")
    for seed, name in enumerate(("some/model", "other/model", "third/model", "a/student")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_model(pico_model("llama", vocabulary=320, layers=4, seed=seed), own, folder / name)
    backwards = train_tokenizer((text[::-1] for text in texts), size=300)
    save_model(pico_model("llama", vocabulary=320, layers=4, seed=4), backwards, folder / "backwards/model")
    masked = train_tokenizer(texts, size=300, masked=True)
    masked.save_pretrained(folder / "masked/tokenizer")
    bert = pico_model("bert", vocabulary=300, layers=4)
    save_model(bert, masked, folder / "masked/model")
    save_model(bert.base_model, masked, folder / "a/body")
    judge = classifier_from_fields(WIDE, masked, labels=("0", "1"), context=32, seed=2)
    save_model(judge, masked, folder / "masked/classifier")
    for name, text in BASES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def build_cache() -> None:
    """Write what ``some/model`` says, more of it than the base recipe keeps, in the current folder."""
    recipe = load("cached.yaml", ["teachers[0].cache.preset=large"])
    setup = RecipeSetup(recipe, load_tokenizer("some/tokenizer"), home())
    made = CacheJob.of(setup, recipe.teachers[0], "some/model", 1).ensure()
    made.rename("some/cache")


def home() -> RunContext:
    """Where results lie, in the current folder."""
    return RunContext(Path("runs"))
