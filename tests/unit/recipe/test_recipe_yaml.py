"""Reading YAML: numbers as people write them, lines kept, tricks refused."""

import pytest
import yaml

from stlm_kd.recipe.schema.fields import parse_count
from stlm_kd.recipe.yaml import LARGEST, Node, YamlError, parse


def faults(text: str) -> list[str]:
    with pytest.raises(YamlError) as caught:
        parse(text)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("007", 7),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ("~", None),
        ("true", True),
        ("200M", "200M"),
        ("0x10", "0x10"),
    ],
)
def test_a_scalar_means_what_it_looks_like(text: str, value: object) -> None:
    found = parse(f"key: {text}").plain()
    assert found == {"key": value}
    assert isinstance(found, dict) and type(found["key"]) is type(value)


def test_the_value_is_that_of_pyyaml_where_yaml_has_no_traps() -> None:
    text = "a: [1, 2.5, {b: 'x y', c: \"d\\n\"}]\nd: |\n  two\n  lines\n"
    text += "e: >-\n  one\n  line\nf:\n  - g\n  - h: null\n"
    assert parse(text).plain() == yaml.safe_load(text)


def test_every_node_knows_its_line() -> None:
    root = parse("a: 1\nb:\n  - c: 2\n  - 3\n")

    def lines(node: Node) -> object:
        if isinstance(node.value, dict):
            return {key: (inner.line, lines(inner)) for key, inner in node.value.items()}
        return (
            [(inner.line, lines(inner)) for inner in node.value]
            if isinstance(node.value, list)
            else node.value
        )

    assert lines(root) == {"a": (1, 1), "b": (2, [(3, {"c": (3, 2)}), (4, 3)])}


def test_a_key_given_twice_is_a_fault_with_both_lines_and_all_are_found() -> None:
    assert faults("a: 1\nb: {c: 1, c: 2}\na: 2\n") == [
        "b.c (line 2): given twice; first in line 2",
        "a (line 3): given twice; first in line 1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!str 1",
        "!x a: 1",
        "a: &x [1]\nb: *x",
        "a: &x 1",
        "a: {<<: *x}",
        "[a]: 1",
        "? {a: b}\n: 1",
        "a: 1\n---\nb: 2",
        "a: [1",
        "a:\n\t- 1",
        "a: \x01",
        "a: " + "[" * 40 + "]" * 40,
        "a: " + "{b: " * 40 + "1" + "}" * 40,
        "#" * (LARGEST + 1),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_one_plain_document_is_refused(text: str) -> None:
    assert len(faults(text)) == 1


def test_nested_aliases_are_refused_before_they_grow() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    assert "anchors and aliases are not supported" in faults(bomb)[0]


def test_syntax_faults_name_the_line() -> None:
    assert faults("a: 1\n  b: 2\n")[0].startswith("line 2: not YAML")


@pytest.mark.parametrize(
    ("written", "count"),
    [("200M", 200_000_000), ("8k", 8_000), ("1.5B", 1_500_000_000), ("2.5k", 2_500), (1e6, 1_000_000)],
)
def test_counts_may_carry_a_unit(written: object, count: int) -> None:
    assert parse_count(written) == count


@pytest.mark.parametrize("written", ["200G", "1.0001k", "-8k", "k", "1,000", 1.5, True, None])
def test_what_is_no_count_is_left_for_the_type_check(written: object) -> None:
    assert parse_count(written) is written


def test_an_empty_text_is_null() -> None:
    assert parse("").plain() is None
    assert parse("# only a comment\n").plain() is None
