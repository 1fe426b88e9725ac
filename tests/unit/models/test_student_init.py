"""Students made of a teacher's layers, tensor by tensor and as a whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, DistilBertForMaskedLM, PreTrainedModel

from stlm_kd.errors import ModelError
from stlm_kd.models.load import count_parameters
from stlm_kd.models.partial_forward import finish, prepare
from stlm_kd.models.students import choose_layers, student_from_layers
from tests.support.paths import GOLDEN_FOLDER
from tests.support.pico import ALL_FAMILIES, pico_model

GOLDEN = json.loads((GOLDEN_FOLDER / "student_init.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
MAP = CASES["num_layers=3,vocab_transform=True"]["map"]
POSITIONS = "distilbert.embeddings.position_embeddings.weight"


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 19).view(2, 8)).logits


def expected_names(layers: list[int], transform: bool) -> dict[str, str]:
    """The golden map of three layers applied to others: names follow those of the first layer."""
    names = {new: old for new, old in MAP.items() if ".layer." not in new}
    if not transform:
        names = {new: old for new, old in names.items() if not re.match(r"vocab_(transform|layer_norm)", new)}
    first = {new: old for new, old in MAP.items() if ".transformer.layer.0." in new}
    for student, teacher in enumerate(layers):
        for new, old in first.items():
            names[new.replace("layer.0.", f"layer.{student}.")] = old.replace("layer.0.", f"layer.{teacher}.")
    return names


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_from_where_the_reference_takes_it(case: str) -> None:
    layers, size = CASES[case]["teacher_layers"], CASES[case]["n_keys"]
    names = expected_names(layers, transform=case.endswith("True"))
    assert len(names) == size
    teacher = pico_model("bert", layers=12)
    old = teacher.state_dict()
    new = student_from_layers(teacher, layers, place="here", model_type="distilbert").state_dict()
    assert set(new) - set(names) == set(CASES[case]["student_keys_not_initialised"])
    for name in set(names) - {POSITIONS}:
        for alias in names[name].split("|"):
            assert torch.equal(new[name], old[alias]), name
    type_0 = old["bert.embeddings.token_type_embeddings.weight"][0]
    assert torch.equal(new[POSITIONS], old[names[POSITIONS]] + type_0)


def test_the_expansion_of_the_golden_map_is_the_golden_map_where_it_is_written_out() -> None:
    assert expected_names([0, 2, 4], transform=True) == MAP


def test_a_spread_of_half_a_bert_of_twelve_is_the_references_choice() -> None:
    layers = CASES["num_layers=6,vocab_transform=True"]["teacher_layers"]
    assert choose_layers(12, "spread", place="") == layers


@pytest.mark.parametrize("tied", [True, False])
def test_a_distilbert_of_all_layers_says_what_the_bert_says(tied: bool) -> None:
    teacher = pico_model("bert", layers=2, tied=tied).eval()
    student = student_from_layers(teacher, [0, 1], place="here", model_type="distilbert")
    assert isinstance(student, DistilBertForMaskedLM)
    assert student.config._attn_implementation == "sdpa"
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied
    assert torch.allclose(
        logits(student), logits(teacher), rtol=0, atol=1e-6 * float(logits(teacher).abs().max())
    )


def test_a_distilbert_of_some_layers_says_what_the_bert_says_without_the_others() -> None:
    teacher = pico_model("bert", layers=4).eval()
    student = student_from_layers(teacher, [1, 3], place="here", model_type="distilbert")
    inputs = {"input_ids": torch.arange(3, 19).view(2, 8)}
    run = prepare(teacher, inputs)
    hidden, _ = run.run(start=1, stop=2)
    hidden, _ = run.run(hidden, start=3)
    assert torch.allclose(logits(student), finish(teacher, hidden, inputs).logits, atol=1e-5)


def test_a_saved_distilbert_student_is_loaded_whole(tmp_path: Path) -> None:
    student = student_from_layers(pico_model("bert"), "first", place="here", model_type="distilbert")
    student.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(loaded.eval()), logits(student))


@pytest.mark.parametrize(
    ("own", "wanted", "possible"),
    [
        ("roberta", "distilbert", "possible: roberta$"),
        ("bert", "llama", "possible: bert, distilbert$"),
        ("distilbert", "bert", "possible: distilbert$"),
        ("gpt2", "qwen2", "possible: gpt2$"),
    ],
)
def test_a_family_that_the_layers_cannot_become_is_refused(own: str, wanted: str, possible: str) -> None:
    message = (
        f"^student.init_from: a {wanted} student cannot be made of the layers of a {own} teacher; {possible}"
    )
    with pytest.raises(ModelError, match=message):
        student_from_layers(pico_model(own), "first", place="student.init_from", model_type=wanted)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_student_of_some_layers_is_the_teacher_run_through_these_alone(family: str, tied: bool) -> None:
    """What lies around the blocks (a transform, biases) is the teacher's too."""
    teacher = pico_model(family, layers=4, tied=tied).eval()
    student = student_from_layers(teacher, [1, 3], place="here")
    inputs = {"input_ids": torch.arange(3, 19).view(2, 8)}
    run = prepare(teacher, inputs)
    hidden, _ = run.run(start=1, stop=2)
    hidden, _ = run.run(hidden, start=3)
    assert torch.equal(logits(student), finish(teacher, hidden, inputs).logits)
    assert student.config.num_hidden_layers == 2
    assert type(student) is type(teacher)
    whole = student_from_layers(teacher, range(4), place="here")
    assert torch.equal(logits(whole), logits(teacher))


def test_a_mobillama_of_some_layers_still_has_one_network() -> None:
    teacher = pico_model("mobillama", layers=5)
    student = student_from_layers(teacher, "last", place="here")
    layers = student.model.layers
    assert len(layers) == 2
    assert layers[0].mlp is layers[1].mlp
    assert torch.equal(layers[0].mlp.up_proj.weight, teacher.model.layers[0].mlp.up_proj.weight)
    block = sum(p.numel() for name, p in layers[0].named_parameters() if not name.startswith("mlp"))
    assert count_parameters(teacher) - count_parameters(student) == 3 * block


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_student_is_independent_of_its_teacher(family: str) -> None:
    teacher = pico_model(family).eval()
    before = logits(teacher)
    student = student_from_layers(teacher, "first", place="here")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(0.5)
    assert torch.equal(logits(teacher), before)


def test_a_student_that_is_too_large_is_refused_before_it_is_built() -> None:
    with torch.device("meta"):
        teacher = pico_model("llama", layers=2, width=4096)
        with pytest.raises(ModelError, match="a student has at most 150,000,000"):
            student_from_layers(teacher, [0, 1], place="here")


def test_a_bert_whose_norms_a_distilbert_cannot_have_is_refused() -> None:
    teacher = pico_model("bert")
    teacher.config.layer_norm_eps = 1e-5
    with pytest.raises(ModelError, match="layer_norm_eps is 1e-05"):
        student_from_layers(teacher, "first", place="student", model_type="distilbert")
