"""A fine-tuning epoch on a part of SST-2 against transformers' own ``Trainer``, side by side in one run.

Both sides fine-tune the same model with a head of the same weights for one epoch over the same examples,
with the same batch, learning rate, AdamW and clipping, and neither validates. Ours is the one loop as the
suite ``glue`` runs it, tokenising and the checkpoint at the end included. ``Trainer`` has its default
collator (each batch padded to its longest example), saves nothing, and reads examples that were tokenised
beforehand, which is not timed. Loading the model is timed on neither side. Before anything is timed, both
have to give the same loss on the same examples. The sides take turns; the median ratio of the turns counts,
since load on the machine falls on both alike. The ratio by processor time hardly feels the load.

    python benchmarks/training/glue_epoch.py --model $MINILM --threads 1  # on $STLM_KD_DATA/glue/sst2
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from stlm_kd.data.labelled.examples import Examples, LabelledSource, draw_fraction, read_examples
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.eval.fine_tuning.glue import TASKS, Glue
from stlm_kd.losses import LABELS
from stlm_kd.models.heads.classifiers import load_classifier
from stlm_kd.pipeline.builders.data import BatchSizes, LabelledData
from stlm_kd.tracking import Trackers
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit

TARGET = 1.5
LEARNING_RATE = 2e-5


def main() -> int:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    source = LabelledSource(path=str(options.data))
    whole = read_examples(source, labels=TASKS["sst2"].labels)
    examples = draw_fraction(whole, min(1.0, options.examples / len(whole)), seed=0)
    tokenised = Tokenised(examples, tokenizer)
    tokens = sum(len(row) for row in tokenised.ids)
    print(
        f"{len(examples)} of {len(whole)} examples, {tokens / len(examples):.1f} tokens each, batch "
        f"{options.batch}, {torch.get_num_threads()} threads"
    )
    compare_losses(options, examples, tokenised, tokenizer)
    sides: dict[str, Callable[[PreTrainedModel], None]] = {
        "ours": lambda model: ours(model, options, examples, tokenizer),
        "Trainer": lambda model: trainer(model, options, tokenised, tokenizer),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.turns):
        for name, run in sides.items():
            taken[name].append(timed(run, model_of(options, tokenizer)))
    return report(taken, len(examples))


def arguments() -> argparse.Namespace:
    folder = os.environ.get("STLM_KD_DATA")
    data = Path(folder, "glue/sst2/train.jsonl.gz") if folder else None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or Hub id of a language model or body")
    parser.add_argument("--data", default=data, required=data is None, help="SST-2 (sentence, label)")
    parser.add_argument("--examples", type=int, default=512, help="drawn, of each class the same share (512)")
    parser.add_argument("--batch", type=int, default=32, help="examples of an optimizer step (32)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (5)")
    parser.add_argument("--threads", type=int, help="of PyTorch (its default)")
    return parser.parse_args()


class Tokenised(Dataset[dict[str, object]]):
    """The examples as ``Trainer`` reads them: unpadded, as the tokenizer itself gives them."""

    def __init__(self, examples: Examples, tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = tokenizer([text for (text,) in examples.texts], truncation=True, max_length=Glue.context)
        self.ids: list[list[int]] = self.rows["input_ids"]
        self.labels: list[int] = examples.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, object]:
        return {**{name: values[place] for name, values in self.rows.items()}, "labels": self.labels[place]}


def model_of(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    labels = TASKS["sst2"].labels
    return load_classifier(options.model, labels, tokenizer=tokenizer, head_seed=1)


def ours(
    model: PreTrainedModel,
    options: argparse.Namespace,
    examples: Examples,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """One epoch through the one loop."""
    training_data = LabelledData(examples, None, tokenizer, {}, Glue.context)
    stream = training_data.stream(BatchSizes(options.batch, options.batch), seed=1)
    settings = TrainingConfig(
        steps=stream.steps_per_epoch,
        learning_rate=LEARNING_RATE,
        schedule="linear",
        warmup=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        clip=1.0,
        seed=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(
            DistillationStep(model, [Term(LABELS, LABELS)]),
            stream,
            settings,
            folder=Path(folder),
            validation=None,
            tracker=Trackers(),
            resume=False,
            fingerprint="benchmark",
        )


def trainer(
    model: PreTrainedModel,
    options: argparse.Namespace,
    tokenised: Tokenised,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """One epoch by transformers."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            max_grad_norm=1.0,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=1,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer(model, settings, train_dataset=tokenised, processing_class=tokenizer).train()


@torch.no_grad()
def compare_losses(
    options: argparse.Namespace,
    examples: Examples,
    tokenised: Tokenised,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Stop unless both sides say the same of the first batch of examples."""
    model = model_of(options, tokenizer).eval()
    few = examples.select(torch.arange(options.batch).numpy())
    batch = next(LabelledData(few, None, tokenizer, {}, Glue.context).in_order(options.batch))
    step = DistillationStep(model, [Term(LABELS, LABELS)]).eval()
    own = float(step(batch, {LABELS: options.batch}).loss)
    padded = tokenizer.pad([tokenised[place] for place in range(options.batch)], return_tensors="pt")
    theirs = float(model(**padded).loss)
    print(f"loss of the same {options.batch} examples: {own:.6f} ours, {theirs:.6f} Trainer's way")
    if abs(own - theirs) > 1e-4:
        sys.exit("the sides do not compute the same loss")


def timed(run: Callable[[PreTrainedModel], None], model: PreTrainedModel) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    began, used = time.perf_counter(), time.process_time()
    run(model)
    return time.perf_counter() - began, time.process_time() - used


def report(taken: dict[str, list[tuple[float, float]]], examples: int) -> int:
    """Print medians and ratios; 1 where the target is missed."""
    for name, turns in taken.items():
        print(f"{name}: {examples / statistics.median(clock for clock, _ in turns):.1f} examples/s")
    ratios = [
        statistics.median(
            theirs[which] / own[which] for own, theirs in zip(taken["ours"], taken["Trainer"], strict=True)
        )
        for which in (0, 1)
    ]
    told = "met" if ratios[0] >= TARGET else "MISSED"
    print(
        f"throughput: {ratios[0]:.2f} x by the clock (target {TARGET}: {told}), "
        f"{ratios[1]:.2f} x by processor time"
    )
    return int(ratios[0] < TARGET)


if __name__ == "__main__":
    sys.exit(main())
