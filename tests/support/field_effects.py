"""For each field of the recipe schema a change of it, on a recipe where the field plays a part."""

from __future__ import annotations

from dataclasses import dataclass

BASES = {
    "classes": """
task: classification
student: {tokenizer: masked/tokenizer, architecture: {model_type: bert, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
data:
  train: [{path: pairs.jsonl, text: [one, two], label: judged}]
  labels: ["0", "1"]
  validation: {path: held.jsonl, text: [one, two], label: judged}
  context: 32
objectives: [{loss: labels}]
train: {steps: 10}
eval: [classification]
""",
    "numbers": """
task: regression
student: {tokenizer: masked/tokenizer, architecture: {model_type: bert, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
data:
  train: {path: pairs.jsonl, text: [one, two], label: judged}
  validation: {path: held.jsonl, text: [one, two], label: judged}
  context: 32
objectives: [{loss: labels}]
train: {steps: 10}
eval: [regression]
""",
    "beside": """
task: classification
student: {tokenizer: masked/tokenizer, architecture: {model_type: bert, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
teachers: [{name: a, model: masked/classifier}]
data:
  train: [{path: pairs.jsonl, text: [one, two], label: judged}]
  labels: ["0", "1"]
  validation: {path: held.jsonl, text: [one, two], label: judged}
  context: 32
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 10}
eval: [{suite: agreement, attributions: [lime]}]
""",
    "two-teachers": """
task: clm
student:
  tokenizer: some/tokenizer
  init_from: {teacher: a, layers: every-other}
teachers:
  - {name: a, model: some/model, adapt: {tokens: 1M}}
  - {name: b, model: other/model}
combine: {how: weighted, weights: {a: 0.5, b: 0.5}}
data:
  train: [{path: a.txt}, {hub: some/data, name: one}, {sample: train, size: 20k}]
  validation: b.txt
  context: 64
objectives:
  - {loss: labels, weight: 0.5}
  - {loss: forward_kl, weight: 0.5}
  - {loss: reverse_kl, weight: 0.5}
train: {steps: 100, validate_every: 10}
eval: [{suite: perplexity}, {suite: lm-eval, tasks: [blimp]}]
""",
    "annealed": """
task: clm
student: {tokenizer: some/tokenizer, preset: stlm-nano}
teachers: [{name: a, model: some/model}, {name: b, model: other/model}]
combine: {how: annealed, first: a, last: b}
data: {train: a.txt}
objectives: [{loss: forward_kl}]
train: {steps: 10}
""",
    "trained": """
task: clm
student:
  tokenizer: {train: bpe, size: 512}
  preset: stlm-nano
data: {train: a.txt}
objectives: [{loss: labels}]
train: {epochs: 1}
""",
    "features": """
task: clm
student: {tokenizer: some/tokenizer, architecture: {model_type: llama, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1}}
teachers: [{name: a, model: some/model}, {name: b, model: other/model}]
data: {train: a.txt}
objectives:
  - {loss: hint, weight: {schedule: linear, values: [1, 0.5]}, teacher: a, sites: full}
  - loss: attention_mse
    teacher: a
    sites: first
    weight: {schedule: step-wise, values: [1, 0.5], at: [0.3]}
  - {loss: jensen_shannon}
  - {loss: skew_forward_kl}
  - {loss: logit_mse, centred: true}
train: {steps: 10}
""",
    "interchange": """
task: clm
student: {tokenizer: some/tokenizer, architecture: {model_type: llama, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1}}
teachers: [{name: a, model: some/model}]
data: {train: a.txt, validation: b.txt}
objectives:
  - {loss: diito, causal_cosine_weight: 0.1}
  - {loss: diito, source: mixup}
train: {steps: 10}
eval: [interchange]
""",
    "masked": """
task: mlm
student: {tokenizer: masked/tokenizer, init_from: {teacher: a, model_type: distilbert}}
teachers: [{name: a, model: masked/model}]
data: {train: a.txt, validation: b.txt, context: 64}
objectives: [{loss: labels}, {loss: forward_kl, on: attended}]
train: {steps: 10, precision: bf16}
engine: {deepspeed: {zero: 2}}
eval: [{suite: pseudo-perplexity}, {suite: masked-loss}]
""",
    "new-head": """
task: mlm
student: {tokenizer: masked/tokenizer, model: a/body, new_head: true}
data: {train: a.txt, context: 64}
objectives: [{loss: labels}]
train: {steps: 10}
eval: [{suite: glue, tasks: [rte]}, ner, squad]
""",
    "cached": """
task: clm
student: {tokenizer: some/tokenizer, preset: stlm-nano}
teachers: [{name: a, model: some/model, cache: {preset: small}}]
data: {train: a.txt, context: 64}
objectives: [{loss: forward_kl, temperature: 2}]
train: {steps: 10}
""",
    "cached-masked": """
task: mlm
student: {tokenizer: masked/tokenizer, init_from: {teacher: a, model_type: distilbert}}
teachers: [{name: a, model: masked/model, cache: {preset: small}}]
data: {train: a.txt, context: 64}
objectives: [{loss: forward_kl}]
train: {steps: 10}
""",
    "filtered": """
task: clm
student: {tokenizer: some/tokenizer, architecture: {model_type: llama, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}}
data: {train: [{path: shards}], validation: {path: held-text.jsonl}, context: 16}
objectives: [{loss: labels}]
train: {steps: 10}
""",
    "chats": """
task: clm
student: {tokenizer: some/tokenizer, architecture: {model_type: llama, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}}
data: {train: [{path: chats.jsonl, chat: {template: chat.jinja}}], context: 16}
objectives: [{loss: labels}]
train: {steps: 10}
""",
    "teacher-by-recipe": """
task: clm
student: {tokenizer: some/tokenizer, preset: stlm-nano}
teachers:
  - name: a
    recipe:
      task: clm
      student: {tokenizer: some/tokenizer, preset: stlm-2m}
      data: {train: a.txt}
      objectives: [{loss: labels}]
      train: {steps: 10}
data: {train: a.txt}
objectives: [{loss: forward_kl}]
train: {steps: 10}
""",
}


@dataclass(frozen=True)
class Change:
    """Overrides that change one field of a base recipe (and what must change with it)."""

    overrides: tuple[str, ...]
    base: str = "two-teachers"


def _change(*overrides: str, base: str = "two-teachers") -> Change:
    return Change(overrides, base)


BASES["table"] = BASES["new-head"].replace("a.txt", "{path: pairs.jsonl, column: one}")
BASES["trimmed"] = (
    BASES["two-teachers"]
    .replace("tokenizer: some/tokenizer", "tokenizer: {trim: a, size: 290}")
    .replace("other/model", "backwards/model")
)
BASES["preferred"] = BASES["trimmed"].replace(
    "{trim: a, size: 290}", "{train: bpe, size: 290, prefer: teachers}"
)
BASES["subsampled"] = BASES["filtered"].replace("{path: shards}", "{path: shards, subsample: {rate: 0.5}}")
BASES["sample-classes"] = (
    BASES["classes"]
    .replace("{path: pairs.jsonl, text: [one, two], label: judged}", "{sample: sentiment, size: 40}")
    .replace("{path: held.jsonl, text: [one, two], label: judged}", "{sample: acceptability, size: 40}")
)

ONE_VALUE_SO_FAR = {"TokenizerTraining.train"}
"""Fields with a single possible value, which cannot be changed yet."""

EFFECTS: dict[str, Change] = {
    "Recipe.task": _change(
        "task=mlm",
        "student={tokenizer: masked/tokenizer, architecture: {model_type: bert, hidden_size: 16, "
        "intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}",
        base="trained",
    ),
    "Recipe.engine": _change("engine={}", base="masked"),
    "Engine.deepspeed": _change("engine.deepspeed=null", base="masked"),
    "DeepSpeed.zero": _change("engine.deepspeed.zero=1", base="masked"),
    "DeepSpeed.config": _change("engine.deepspeed.config=deepspeed.json", base="masked"),
    "DeepSpeed.weights": _change("engine.deepspeed.weights=bf16", base="masked"),
    "DeepSpeed.offload": _change("engine.deepspeed.offload=optimizer", base="masked"),
    "Recipe.student": _change("student.init_from=null", "student.model=a/student"),
    "Recipe.teachers": _change("teachers[1].name=c", "combine.weights={a: 0.5, c: 0.5}"),
    "Recipe.combine": _change("combine={how: mean}"),
    "Recipe.data": _change("data.context=32"),
    "Recipe.objectives": _change("objectives=[{loss: labels}]"),
    "Recipe.train": _change("train.steps=200"),
    "Recipe.eval": _change("eval=[]"),
    "Recipe.controls": _change("controls=[no-teacher]"),
    "Recipe.seeds": _change("seeds=[1, 2]"),
    "Recipe.tracking": _change("tracking=[]"),
    "Student.tokenizer": _change("student.tokenizer=other/tokenizer"),
    "Student.preset": _change("student.preset=stlm-2m", base="trained"),
    "Student.architecture": _change(
        "student.preset=null", "student.architecture={model_type: llama, hidden_size: 64}", base="trained"
    ),
    "Student.model": _change("student.preset=null", "student.model=a/student", base="trained"),
    "Student.init_from": _change("student.init_from.layers=first"),
    "Student.new_head": _change("student.model=masked/model", "student.new_head=false", base="new-head"),
    "Student.dropout": _change("student.dropout=0.3"),
    "TokenizerTrim.trim": _change("student.tokenizer.trim=b", base="trimmed"),
    "TokenizerTraining.prefer": _change("student.tokenizer.prefer=null", base="preferred"),
    "TokenizerTrim.size": _change("student.tokenizer.size=291", base="trimmed"),
    "TokenizerTraining.size": _change("student.tokenizer.size=700", base="trained"),
    "InitFrom.teacher": _change("student.init_from.teacher=b"),
    "InitFrom.layers": _change("student.init_from.layers=[0, 3]"),
    "InitFrom.model_type": _change("student.init_from.model_type=bert", base="masked"),
    "Teacher.name": _change(
        "teachers[0].name=c", "combine.weights={c: 0.5, b: 0.5}", "student.init_from.teacher=c"
    ),
    "Teacher.model": _change("teachers[1].model=third/model"),
    "Teacher.recipe": _change("teachers[0].recipe.train.steps=11", base="teacher-by-recipe"),
    "Teacher.cache": _change("teachers[0].cache=null", base="cached"),
    "Cache.path": _change("teachers[0].cache=some/cache", base="cached"),
    "Cache.preset": _change("teachers[0].cache.preset=large", base="cached"),
    "Cache.top": _change("teachers[0].cache.top=3", base="cached"),
    "Cache.draws": _change("teachers[0].cache.draws=3", base="cached"),
    "Cache.temperature": _change(
        "teachers[0].cache.temperature=3", "objectives[0].temperature=3", base="cached"
    ),
    "Cache.variants": _change("teachers[0].cache.variants=2", base="cached-masked"),
    "Cache.states": _change("teachers[0].cache.states=[last]", base="cached"),
    "Teacher.translate": _change("teachers[1].translate=true", base="annealed"),
    "Teacher.adapt": _change("teachers[0].adapt=null"),
    "Adapt.init": _change("teachers[0].adapt.init=mean"),
    "Adapt.objective": _change("teachers[0].adapt.objective=self-distillation"),
    "Adapt.norms": _change("teachers[0].adapt.norms=true"),
    "Teacher.precision": _change("teachers[1].precision=bf16"),
    "Teacher.classes": _change("teachers[0].classes={'0': '1', '1': '0'}", base="beside"),
    "Teacher.offload": _change("teachers[1].offload=true"),
    "Teacher.placement": _change("teachers[1].placement=offload"),
    "Adapt.tokens": _change("teachers[0].adapt.tokens=2M"),
    "Adapt.learning_rate": _change("teachers[0].adapt.learning_rate=1e-3"),
    "Adapt.old_rows_learning_rate": _change("teachers[0].adapt.old_rows_learning_rate=0"),
    "Adapt.effective_batch": _change("teachers[0].adapt.effective_batch=16"),
    "Adapt.micro_batch": _change("teachers[0].adapt.micro_batch=4"),
    "Adapt.warmup": _change("teachers[0].adapt.warmup=0"),
    "Adapt.schedule": _change("teachers[0].adapt.schedule=linear"),
    "Adapt.validate_every": _change("teachers[0].adapt.validate_every=5"),
    "Adapt.patience": _change("teachers[0].adapt.patience=null"),
    "Adapt.fraction": _change("teachers[0].adapt.fraction=0.5"),
    "Adapt.precision": _change("teachers[0].adapt.precision=bf16"),
    "Adapt.seed": _change("teachers[0].adapt.seed=1"),
    "Combine.how": _change("combine.how=mean", "combine={how: mean}"),
    "Combine.teacher_dropout": _change("combine.teacher_dropout=0.3"),
    "Combine[weighted].weights": _change("combine.weights.a=0.7"),
    "Combine[confidence].sharpness": _change("combine={how: confidence, sharpness: 2}"),
    "Combine[entropy].sharpness": _change("combine={how: entropy, sharpness: 2}"),
    "Combine[label-likelihood].sharpness": _change("combine={how: label-likelihood, sharpness: 2}"),
    "Combine[domains].weights": _change("combine={how: domains, weights: {default: {a: 1, b: 2}}}"),
    "Combine[random].per": _change("combine={how: random, per: sequence}"),
    "Combine[learned].weight": _change("combine={how: learned, weight: 2}"),
    "Combine[annealed].first": _change("combine.first=b", "combine.last=a", base="annealed"),
    "Combine[annealed].last": _change("combine.last=a", "combine.first=b", base="annealed"),
    "Combine[annealed].shape": _change("combine.shape=cosine", base="annealed"),
    "Combine[annealed].begin": _change("combine.begin=0.1", base="annealed"),
    "Combine[annealed].end": _change("combine.end=0.9", base="annealed"),
    "Data.train": _change("data.train=c.txt"),
    "Data.validation": _change("data.validation=c.txt"),
    "Data.fraction": _change("data.fraction=0.5"),
    "Data.allow_overlap": _change("data.allow_overlap=true"),
    "Data.remove_overlap": _change("data.remove_overlap=true", base="filtered"),
    "Data.context": _change("data.context=128"),
    "Data.masked_share": _change("data.masked_share=0.3", base="masked"),
    "Source[path].path": _change("data.train[0].path=c.txt"),
    "Source[hub].hub": _change("data.train[1].hub=other/data"),
    "Source[sample].sample": _change("data.train[2].sample=validation"),
    "Source[hub].name": _change("data.train[1].name=two"),
    "Source[hub].split": _change("data.train[1].split=test"),
    "Source[hub].column": _change("data.train[1].column=body"),
    "Source[hub].lines": _change("data.train[1].lines=article"),
    "Source[path].column": _change("data.train[0].column=two", base="table"),
    "Source[hub].revision": _change("data.train[1].revision=abc"),
    "Source[hub].where": _change("data.train[1].where={language: en}"),
    "Source[path].where": _change("data.train[0].where={language: en}", base="filtered"),
    "Source[path].documents": _change("data.train[0].documents=line"),
    "Separator.separator": _change("data.train[0].documents={separator: the}"),
    "Source[sample].size": _change("data.train[2].size=30k"),
    "Source[sample].split": _change("data.train[0].split=validation", base="sample-classes"),
    "Source.domain": _change("data.train[0].domain=news"),
    "Source.weight": _change("data.train[0].weight=2"),
    "Source.share": _change(
        "data.train=[{path: a.txt, share: 0.75}, {path: shards, share: 0.25}]", base="filtered"
    ),
    "Source.limit": _change("data.train[0].limit=100", base="filtered"),
    "Limit.tokens": _change("data.train[0].limit={tokens: 100}", base="filtered"),
    "Limit.documents": _change("data.train[0].limit={documents: 3}", base="filtered"),
    "Limit.bytes": _change("data.train[0].limit={bytes: 300}", base="filtered"),
    "Source.shuffle": _change("data.train[0].shuffle=1", base="filtered"),
    "Source.subsample": _change("data.train[0].subsample=0.5", base="filtered"),
    "Subsample.rate": _change("data.train[0].subsample.rate=0.25", base="subsampled"),
    "Subsample.seed": _change("data.train[0].subsample.seed=1", base="subsampled"),
    "Source.chat": _change("data.train[0].chat.messages=told", base="chats"),
    "Chat.template": _change(
        "data.train[0].chat.template=chatml", "data.train[0].chat.messages=messages", base="chats"
    ),
    "Chat.messages": _change("data.train[0].chat.messages=told", base="chats"),
    "Source.min_characters": _change("data.train[0].min_characters=200", base="filtered"),
    "Source.deduplicate": _change("data.train[0].deduplicate=true", base="filtered"),
    "Objective.loss": _change("objectives[1].loss=reverse_kl"),
    "Objective.weight": _change("objectives[1].weight=0.25"),
    "Source.text": _change("data.train[0].text=[two, one]", base="classes"),
    "Source.label": _change("data.train[0].label=other", base="classes"),
    "Data.labels": _change("data.labels=[no, yes]", base="classes"),
    "Suite[agreement].attributions": _change("eval[0].attributions=[integrated-gradients]", base="beside"),
    "Suite[agreement].examples": _change("eval[0].examples=4", base="beside"),
    "Suite[agreement].which": _change("eval[0].which=hard", base="beside"),
    "Suite[agreement].ids": _change("eval[0].ids=[3, 4]", base="beside"),
    "Suite[agreement].classes": _change("eval[0].classes=[1]", base="beside"),
    "Suite[agreement].sources": _change("eval[0].sources=[x]", base="beside"),
    "Suite[agreement].features": _change("eval[0].features=5", base="beside"),
    "Suite[agreement].samples": _change("eval[0].samples=100", base="beside"),
    "Suite[agreement].steps": _change("eval[0].steps=20", base="beside"),
    "Suite[agreement].top": _change("eval[0].top=2", base="beside"),
    "Suite[agreement].seed": _change("eval[0].seed=1", base="beside"),
    "Suite[agreement].context": _change("eval[0].context=16", base="beside"),
    "Suite[agreement].batch_size": _change("eval[0].batch_size=8", base="beside"),
    "Suite[agreement].precision": _change("eval[0].precision=bf16", base="beside"),
    "Suite[classification].context": _change("eval[0].context=16", base="classes"),
    "Suite[classification].batch_size": _change("eval[0].batch_size=8", base="classes"),
    "Suite[classification].precision": _change("eval[0].precision=bf16", base="classes"),
    "Suite[regression].context": _change("eval[0].context=16", base="numbers"),
    "Suite[regression].batch_size": _change("eval[0].batch_size=8", base="numbers"),
    "Suite[regression].precision": _change("eval[0].precision=bf16", base="numbers"),
    "Response.on": _change("objectives[1].on=attended"),
    "Objective.teacher": _change("objectives[1].teacher=a"),
    "Response[forward_kl].temperature": _change("objectives[1].temperature=2"),
    "Response[reverse_kl].temperature": _change("objectives[2].temperature=2"),
    "Response[forward_kl].temperature_scaling": _change("objectives[1].temperature_scaling=none"),
    "Response[reverse_kl].temperature_scaling": _change("objectives[2].temperature_scaling=none"),
    "Response[jensen_shannon].temperature": _change("objectives[2].temperature=2", base="features"),
    "Response[jensen_shannon].temperature_scaling": _change(
        "objectives[2].temperature_scaling=none", base="features"
    ),
    "Response[skew_forward_kl].temperature": _change("objectives[3].temperature=2", base="features"),
    "Response[skew_forward_kl].temperature_scaling": _change(
        "objectives[3].temperature_scaling=none", base="features"
    ),
    "Response[jensen_shannon].beta": _change("objectives[2].beta=0.2", base="features"),
    "Response[skew_forward_kl].alpha": _change("objectives[3].alpha=0.3", base="features"),
    "Response[logit_mse].centred": _change(
        "objectives[4].centred=false", "objectives[4].teacher=a", base="features"
    ),
    "Feature.on": _change("objectives[0].on=labels", base="features"),
    "Feature.sites": _change("objectives[0].sites=[last, {0: 3}]", base="features"),
    "Feature.projection": _change("objectives[0].projection=linear", base="features"),
    "MapFeature.on": _change("objectives[1].on=labels", base="features"),
    "MapFeature.sites": _change("objectives[1].sites=last", base="features"),
    "Interchange.weight": _change("objectives[0].weight=0.5", base="interchange"),
    "Interchange.on": _change("objectives[0].on=labels", base="interchange"),
    "Interchange.temperature": _change("objectives[0].temperature=1", base="interchange"),
    "Interchange.causal_cosine_weight": _change("objectives[0].causal_cosine_weight=0.2", base="interchange"),
    "Interchange.alignment": _change("objectives[0].alignment=last", base="interchange"),
    "Interchange.layer_schedule": _change("objectives[0].layer_schedule=top-down", base="interchange"),
    "Interchange.exclude_last": _change("objectives[0].exclude_last=true", base="interchange"),
    "Interchange.positions": _change("objectives[0].positions=random", base="interchange"),
    "Interchange.fraction": _change("objectives[0].fraction=0.5", base="interchange"),
    "Interchange.max_tokens": _change("objectives[0].max_tokens=3", base="interchange"),
    "Interchange.source": _change("objectives[0].source=in-context-random", base="interchange"),
    "Interchange.pairing": _change("objectives[0].pairing=independent", base="interchange"),
    "Interchange.mixup_map": _change("objectives[1].mixup_map=residual", base="interchange"),
    "Interchange.mixup_noise": _change("objectives[1].mixup_noise=matched", base="interchange"),
    "SourceEntry.name": _change("objectives[0].source={name: in-context-random}", base="interchange"),
    "SourceEntry[other-example].pairing": _change(
        "objectives[0].source={name: other-example, pairing: independent}", base="interchange"
    ),
    "SourceEntry[input-tokens].pairing": _change(
        "objectives[0].source={name: input-tokens, pairing: independent}", base="interchange"
    ),
    "SourceEntry[mixup].map": _change(
        "objectives[1].source={name: mixup, map: residual}", base="interchange"
    ),
    "SourceEntry[mixup].noise": _change(
        "objectives[1].source={name: mixup, noise: matched}", base="interchange"
    ),
    "Interchange.source_site": _change("objectives[0].source_site=block-input", base="interchange"),
    "Interchange.exact_dropout": _change("objectives[0].exact_dropout=true", base="interchange"),
    "Schedule.schedule": _change("objectives[0].weight.schedule=cosine", base="features"),
    "Schedule.values": _change("objectives[0].weight.values=[1, 0.2]", base="features"),
    "Schedule.between": _change("objectives[0].weight.between=[0.1, 0.5]", base="features"),
    "Schedule.at": _change("objectives[1].weight.at=[0.5]", base="features"),
    "Engine.vocabulary_loss": _change("engine.vocabulary_loss=dense", base="masked"),
    "Train.steps": _change("train.steps=101"),
    "Train.epochs": _change("train.epochs=2", base="trained"),
    "Train.effective_batch": _change("train.effective_batch=16"),
    "Train.micro_batch": _change("train.micro_batch=4"),
    "Train.learning_rate": _change("train.learning_rate=1e-3"),
    "Train.schedule": _change("train.schedule=constant"),
    "Train.warmup": _change("train.warmup=0.1"),
    "Train.weight_decay": _change("train.weight_decay=0"),
    "Train.betas": _change("train.betas=[0.9, 0.99]"),
    "Train.eps": _change("train.eps=1e-6"),
    "Train.bias_correction": _change("train.bias_correction=false"),
    "Train.clip": _change("train.clip=null"),
    "Train.precision": _change("train.precision=bf16"),
    "Train.gradient_checkpointing": _change("train.gradient_checkpointing=true"),
    "Train.validate_every": _change("train.validate_every=20"),
    "Train.keep": _change("train.keep=last"),
    "Train.patience": _change("train.patience=2"),
    "Train.checkpoint_every": _change("train.checkpoint_every=5"),
    "Train.keep_checkpoints": _change("train.keep_checkpoints=1"),
    "Train.log_every": _change("train.log_every=1"),
    "Suite.suite": _change("eval[0].suite=lm-eval"),
    "Suite[perplexity].on": _change("eval[0].on=wikitext"),
    "Suite[perplexity].window": _change("eval[0].window=32"),
    "Suite[perplexity].stride": _change("eval[0].stride=16"),
    "Suite[perplexity].batch_size": _change("eval[0].batch_size=8"),
    "Suite[perplexity].precision": _change("eval[0].precision=bf16"),
    "Suite[perplexity].hub": _change("eval[0].on=wikitext", "eval[0].hub=Salesforce/wikitext@v1"),
    "Suite[lm-eval].tasks": _change("eval[1].tasks=[arc_easy]"),
    "Suite[lm-eval].limit": _change("eval[1].limit=10"),
    "Suite[lm-eval].num_fewshot": _change("eval[1].num_fewshot=2"),
    "Suite[lm-eval].batch_size": _change("eval[1].batch_size=8"),
    "Suite[lm-eval].precision": _change("eval[1].precision=bf16"),
    "Suite[lm-eval].source": _change("eval[1].source=local"),
    "Suite[lm-eval].hub": _change("eval[1].hub=nyu-mll/blimp@v1"),
    "Suite[glue].tasks": _change("eval[0].tasks=[cola]", base="new-head"),
    "Suite[glue].seeds": _change("eval[0].seeds=2", base="new-head"),
    "Suite[glue].preset": _change("eval[0].preset=few-shot", "eval[0].epochs=3", base="new-head"),
    "Suite[glue].fraction": _change("eval[0].fraction=0.5", base="new-head"),
    "Suite[glue].epochs": _change("eval[0].epochs=2", base="new-head"),
    "Suite[glue].steps": _change("eval[0].steps=7", base="new-head"),
    "Suite[glue].learning_rate": _change("eval[0].learning_rate=1e-4", base="new-head"),
    "Suite[glue].effective_batch": _change("eval[0].effective_batch=8", base="new-head"),
    "Suite[glue].micro_batch": _change("eval[0].micro_batch=4", base="new-head"),
    "Suite[glue].context": _change("eval[0].context=16", base="new-head"),
    "Suite[glue].precision": _change("eval[0].precision=bf16", base="new-head"),
    "Suite[glue].source": _change("eval[0].source=local", base="new-head"),
    "Suite[glue].hub": _change("eval[0].hub=nyu-mll/glue@v1", base="new-head"),
    "Suite[interchange].alignment": _change("eval[0].alignment=middle", base="interchange"),
    "Suite[interchange].source": _change("eval[0].source=mixup", base="interchange"),
    "Suite[interchange].positions": _change("eval[0].positions=random", base="interchange"),
    "Suite[interchange].rows": _change("eval[0].rows=16", base="interchange"),
    "Suite[interchange].context": _change("eval[0].context=32", base="interchange"),
    "Suite[interchange].seed": _change("eval[0].seed=1", base="interchange"),
    "Suite[ner].seeds": _change("eval[1].seeds=2", base="new-head"),
    "Suite[ner].fraction": _change("eval[1].fraction=0.5", base="new-head"),
    "Suite[ner].epochs": _change("eval[1].epochs=4", base="new-head"),
    "Suite[ner].steps": _change("eval[1].steps=7", base="new-head"),
    "Suite[ner].learning_rate": _change("eval[1].learning_rate=1e-4", base="new-head"),
    "Suite[ner].effective_batch": _change("eval[1].effective_batch=8", base="new-head"),
    "Suite[ner].micro_batch": _change("eval[1].micro_batch=4", base="new-head"),
    "Suite[ner].context": _change("eval[1].context=48", base="new-head"),
    "Suite[ner].precision": _change("eval[1].precision=bf16", base="new-head"),
    "Suite[ner].source": _change("eval[1].source=local", base="new-head"),
    "Suite[ner].hub": _change("eval[1].hub=lhoestq/conll2003@v1", base="new-head"),
    "Suite[squad].seeds": _change("eval[2].seeds=2", base="new-head"),
    "Suite[squad].fraction": _change("eval[2].fraction=0.5", base="new-head"),
    "Suite[squad].epochs": _change("eval[2].epochs=4", base="new-head"),
    "Suite[squad].steps": _change("eval[2].steps=7", base="new-head"),
    "Suite[squad].learning_rate": _change("eval[2].learning_rate=1e-4", base="new-head"),
    "Suite[squad].effective_batch": _change("eval[2].effective_batch=8", base="new-head"),
    "Suite[squad].micro_batch": _change("eval[2].micro_batch=4", base="new-head"),
    "Suite[squad].context": _change("eval[2].context=48", base="new-head"),
    "Suite[squad].precision": _change("eval[2].precision=bf16", base="new-head"),
    "Suite[squad].source": _change("eval[2].source=local", base="new-head"),
    "Suite[squad].hub": _change("eval[2].hub=rajpurkar/squad@v1", base="new-head"),
    "Suite[squad].stride": _change("eval[2].stride=16", base="new-head"),
    "Suite[pseudo-perplexity].window": _change("eval[0].window=32", base="masked"),
    "Suite[pseudo-perplexity].tokens": _change("eval[0].tokens=64", base="masked"),
    "Suite[pseudo-perplexity].seed": _change("eval[0].seed=1", base="masked"),
    "Suite[pseudo-perplexity].batch_size": _change("eval[0].batch_size=8", base="masked"),
    "Suite[pseudo-perplexity].precision": _change("eval[0].precision=bf16", base="masked"),
    "Suite[masked-loss].share": _change("eval[1].share=0.3", base="masked"),
    "Suite[masked-loss].seed": _change("eval[1].seed=1", base="masked"),
    "Suite[masked-loss].window": _change("eval[1].window=32", base="masked"),
    "Suite[masked-loss].batch_size": _change("eval[1].batch_size=8", base="masked"),
    "Suite[masked-loss].precision": _change("eval[1].precision=bf16", base="masked"),
}

WITHOUT_TEACHERS: dict[str, Change] = {
    "Recipe.objectives, without teachers": _change(
        "objectives=[{loss: labels}, {loss: labels, weight: 0.5}]", base="trained"
    ),
    "Objective.weight, without teachers": _change("objectives[0].weight=1e-7", base="trained"),
}
"""The same fields on a recipe that has only labels to learn from."""

ELSEWHERE = {"Data.allow_overlap", "Teacher.classes"}
"""Fields that act before a training: on what is refused, and on the copy of a teacher that is made."""
