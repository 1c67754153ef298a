"""Genotypes: validity, JSON and text round trips, files, hostile input."""

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_jax import zoo
from darts_jax.errors import UserError
from darts_jax.genotype import (
    PRIMITIVES,
    CellGenotype,
    Genotype,
    from_flat,
    load,
    load_genotype,
    parse_text,
    pretty,
    save,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)

V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), "
    "('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
BENCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
NODE = (("skip_connect", 0), ("sep_conv_3x3", 1))
PAIR = "[('skip_connect', 0), ('skip_connect', 1)]"


def text_with(normal: str = PAIR, concat: str = "[2]", extra: str = "") -> str:
    return (
        f"Genotype(normal={normal}, normal_concat={concat}, "
        f"reduce={PAIR}, reduce_concat=[2]{extra})"
    )


@st.composite
def cells(draw: st.DrawFn) -> CellGenotype:
    """Any valid cell: variable edges a node, repeated sources, partial concat."""
    num_inputs = draw(st.integers(1, 3))
    nodes = []
    for i in range(draw(st.integers(1, 5))):
        edge = st.tuples(
            st.sampled_from(PRIMITIVES), st.integers(0, num_inputs + i - 1)
        )
        nodes.append(tuple(draw(st.lists(edge, min_size=1, max_size=4))))
    states = st.integers(num_inputs, num_inputs + len(nodes) - 1)
    concat = draw(st.lists(states, min_size=1, unique=True))
    return CellGenotype(tuple(nodes), tuple(concat), num_inputs)


@PROPERTY
@given(normal=cells(), reduce=cells())
def test_json_says_every_genotype(normal: CellGenotype, reduce: CellGenotype) -> None:
    genotype = Genotype("darts", {"normal": normal, "reduce": reduce})
    again = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
    assert again == genotype
    assert hash(again) == hash(genotype)
    assert pickle.loads(pickle.dumps(genotype)) == genotype


def test_the_json_form_is_the_documented_one() -> None:
    genotype = Genotype("darts", {"normal": CellGenotype((NODE,), (2,))})
    assert genotype.to_json() == {
        "space": "darts",
        "cells": {
            "normal": {
                "nodes": [[["skip_connect", 0], ["sep_conv_3x3", 1]]],
                "concat": [2],
                "num_inputs": 2,
            }
        },
    }


def test_the_reference_text_round_trips() -> None:
    genotype = parse_text(V2)
    assert genotype == zoo.load("DARTS_V2")
    assert genotype.to_text() == V2
    assert genotype.cells["normal"].nodes[3] == (
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    )


def test_the_references_fields_are_read() -> None:
    """As the named tuple of the reference is stored in JSON: lists for tuples."""
    edges = [["skip_connect", 0], ["sep_conv_3x3", 1]]
    fields = {"normal": edges, "normal_concat": [2], "reduce": edges * 2}
    genotype = from_flat({**fields, "reduce_concat": [2, 3]})
    assert genotype.cells["normal"].nodes == (NODE,)
    assert genotype.cells["reduce"] == CellGenotype((NODE, NODE), (2, 3))
    with pytest.raises(UserError, match="no field 'reduce_concat'"):
        from_flat(fields)


def test_published_spellings_are_read_alike() -> None:
    assert parse_text(V2.replace("[2, 3, 4, 5]", "range(2, 6)")) == parse_text(V2)
    spread = V2.replace("), ", "),\n   ").replace("normal=", "\n  normal = ")
    assert parse_text(f"\n{spread}\n") == parse_text(V2)


def test_the_nas_bench_201_text_round_trips() -> None:
    genotype = parse_text(BENCH)
    assert genotype.space == "nas_bench_201"
    cell = genotype.cells["cell"]
    assert (cell.num_inputs, cell.concat) == (1, (3,))
    assert cell.nodes[2] == (("none", 0), ("none", 1), ("avg_pool_3x3", 2))
    assert genotype.to_text() == BENCH


def test_text_refuses_what_it_cannot_say() -> None:
    with pytest.raises(
        UserError, match=r"two edges a node; .*\[2, 0, 1, 1\]; use JSON"
    ):
        zoo.load("FairDARTS_A").to_text()
    with pytest.raises(UserError, match="not normal; use JSON"):
        Genotype("darts", {"normal": CellGenotype((NODE,), (2,))}).to_text()
    chain = CellGenotype(((("none", 0),), (("none", 1),)), (2,), 1)
    with pytest.raises(UserError, match="each state 0 to 1; use JSON"):
        Genotype("nas_bench_201", {"cell": chain}).to_text()
    wide = CellGenotype(((("none", 0),), (("none", 0), ("none", 1))), (1, 2), 1)
    with pytest.raises(UserError, match=r"the last node as output, not 1 and \[1, 2\]"):
        Genotype("nas_bench_201", {"cell": wide}).to_text()


@pytest.mark.parametrize("folder", ["t(1)", "|x"])
def test_a_file_may_lie_in_any_folder(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "genotype.json"
    save(parse_text(V2), path)
    assert load_genotype(str(path)) == parse_text(V2)
    with pytest.raises(UserError, match="no genotype file"):
        load_genotype(str(path.with_name("other.json")))


@pytest.mark.parametrize("name", ["NASNet_A", "AmoebaNet_A"])
def test_published_cells_outside_the_search_space_have_text(name: str) -> None:
    genotype = zoo.load(name)
    assert parse_text(genotype.to_text()) == genotype


@pytest.mark.parametrize(
    ("nodes", "concat", "num_inputs", "message"),
    [
        ((), (2,), 2, "1 to 64 nodes"),
        ((NODE,) * 65, (2,), 2, "1 to 64 nodes"),
        ("ab", (2,), 2, "1 to 64 nodes"),
        ((NODE,), (), 2, "non-empty list of concat"),
        ((NODE,), (1,), 2, "concat state 1 is not .*choices: 2 to 2"),
        ((NODE,), (3,), 2, "concat state 3"),
        ((NODE,), (True,), 2, "concat state True"),
        ((NODE,), (2, 2), 2, "repeats"),
        ((NODE,), 2, 2, "non-empty list of concat"),
        ((NODE,), (2,), 0, "num_inputs 0"),
        ((NODE,), (2,), True, "num_inputs True"),
        ((((("sep_conv_3x4"), 0),),), (2,), 2, "did you mean 'sep_conv_3x3'"),
        (((("skip_connect", 2),),), (2,), 2, "source 2 .* choices: 0 to 1"),
        (((("skip_connect", -1),),), (2,), 2, "source -1"),
        (((("skip_connect", True),),), (2,), 2, "source True"),
        (((("skip_connect", 0.0),),), (2,), 2, "source 0.0"),
        ((((3, 0),),), (2,), 2, "unknown primitive '3'"),
        ((((["skip_connect"], 0),),), (2,), 2, "unknown primitive"),
        ((("skip_connect", 0),), (2,), 2, "is not a .primitive, source. pair"),
        ((NODE, ()), (2, 3), 2, "node 3 has no incoming edge"),
        (((), (("skip_connect", 2),)), (3,), 2, "node 2 has no incoming edge"),
    ],
)
def test_a_bad_cell_is_refused(
    nodes: tuple, concat: tuple, num_inputs: int, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        CellGenotype(nodes, concat, num_inputs)
    assert "\n" not in str(caught.value)


def test_an_unused_node_may_be_empty() -> None:
    cell = CellGenotype((NODE, (), NODE), (2, 4))
    assert cell.nodes[1] == ()


def test_a_genotype_checks_its_family_and_cells() -> None:
    cell = CellGenotype((NODE,), (2,))
    with pytest.raises(UserError, match="'dart'; did you mean 'darts'"):
        Genotype("dart", {"normal": cell})
    with pytest.raises(UserError, match="needs cells"):
        Genotype("darts", {})
    with pytest.raises(UserError, match="not a CellGenotype"):
        Genotype("darts", {"normal": (NODE,)})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="is not a name"):
        Genotype("darts", {"../normal": cell})


def test_a_genotype_cannot_be_changed() -> None:
    genotype = parse_text(V2)
    with pytest.raises(TypeError):
        genotype.cells["normal"] = genotype.cells["reduce"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        genotype.space = "nas_bench_201"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('evaluated')",
        "Genotype(normal=__import__('os').mkdir('evaluated'))",
        "Genotype(*[1])",
        "Genotype(**{'normal': 1})",
        "genotypes.DARTS",
        "Genotype.__class__(normal=[])",
        "(lambda: Genotype)()",
        "Genotype(",
        "Genotype()",
        "Genotype(1)",
        "",
        "normal=[]",
        "\0(",
        "(" * 5000,
        "-" * 50_000 + "1(",
        "[" * 50_000 + "(",
        text_with(extra=", __class__=1"),
        text_with(extra=", normal=[]"),
        text_with("[(x, 0) for x in ['none', 'none']]"),
        text_with("[('skip_connect', 0)] * 2"),
        text_with("[('skip_connect', 0), ('skip_connect', -1)]"),
        text_with("[('skip_connect', 0), ('skip_connect', True)]"),
        text_with("[('skip_connect', 0), ('skip_connect', 1.0)]"),
        text_with("[('skip_connect', 0), (f'{1}', 1)]"),
        text_with("[('skip_connect', 0), ('skip_connect'.upper(), 1)]"),
        text_with(f"[('skip_connect', 0), ('skip_connect', 0x{'f' * 5000})]"),
        text_with("[('skip_connect', 0)]"),
        text_with("[]"),
        text_with("'skip_connect'"),
        text_with("7"),
        text_with(concat="range(2, 10**9)"),
        text_with(concat="range(2, 1000000000)"),
        text_with(concat="range(False, True)"),
        text_with(concat="set([2])"),
        text_with(concat="[2, 9]"),
        text_with() + "; import os",
        text_with() + " " * 200_000,
        "|none~0|+|none~0|",
        "|none~0|+|none~1|none~0|",
        "|none~0|+",
        "|none~0",
        "|",
        "||",
        "|none~9999|",
        "|none~-1|",
        "|nine~0|",
        "|__import__('os')~0|",
        "|none~\u0660|",
        "|none~0|+" * 9000,
    ],
)
def test_hostile_text_is_refused_and_never_evaluated(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        parse_text(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_text_that_is_no_string_is_refused() -> None:
    with pytest.raises(UserError, match="not a string"):
        parse_text(7)  # type: ignore[arg-type]


@PROPERTY
@given(text=st.text(alphabet="Genotype(normal=['sk_2', 0])|~+ \n\\", max_size=60))
def test_text_gives_a_genotype_or_a_user_error(text: str) -> None:
    try:
        assert isinstance(parse_text(text), Genotype)
    except UserError as error:
        assert "\n" not in str(error)


def good_json() -> dict:
    return parse_text(V2).to_json()


def changed(path: list, value: object) -> dict:
    """`good_json()` with the entry at `path` replaced."""
    tree = good_json()
    node: object = tree
    for step in path[:-1]:
        node = node[step]  # type: ignore[index]
    node[path[-1]] = value  # type: ignore[index]
    return tree


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "not an object with space, cells"),
        ([], "not an object"),
        ({"space": "darts"}, "no field 'cells'"),
        (changed(["celss"], {}), "did you mean 'cells'"),
        (changed(["space"], 3), "unknown genotype space '3'"),
        (changed(["space"], ["darts"]), "unknown genotype space"),
        (changed(["cells"], []), "'cells' is .*not an object"),
        (changed(["cells"], {}), "needs cells"),
        (changed(["cells", "normal"], []), "cell 'normal' is .*not an object"),
        (changed(["cells", "normal", "nodes"], 1), "cell 'normal': .*nodes"),
        (changed(["cells", "normal", "nodes", 0], None), "node 2 is None"),
        (changed(["cells", "normal", "nodes", 0, 0], "ab"), "not a .primitive"),
        (changed(["cells", "normal", "nodes", 0, 0, 1], "0"), "source '?0"),
        (changed(["cells", "normal", "concat"], {"2": 2}), "concat"),
        (changed(["cells", "normal", "extra"], 1), "unknown cell 'normal' field"),
        (changed(["cells", "a\nb"], good_json()["cells"]["normal"]), "not a name"),
    ],
)
def test_bad_json_is_refused_and_the_file_named(
    value: object, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b" " * 2_000_000],
)
def test_a_file_that_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match="genotype") as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_save_then_load(tmp_path: Path) -> None:
    genotype = zoo.load("FairDARTS_A")
    file = tmp_path / "new" / "genotype.json"
    save(zoo.load("DARTS_V1"), file)
    save(genotype, file)
    assert load(file) == genotype
    assert [path.name for path in file.parent.iterdir()] == ["genotype.json"]


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "genotype.json"
    save(zoo.load("DARTS_V1"), file)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        save(zoo.load("DARTS_V2"), file)
    assert load(file) == zoo.load("DARTS_V1")
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]


def test_load_genotype_takes_a_file_a_name_or_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genotype = parse_text(V2)
    save(genotype, "mine.json")
    save(genotype, "no_suffix")
    for argument in ("mine.json", "./mine.json", "no_suffix", "DARTS_V2", "darts_v2"):
        assert load_genotype(argument) == genotype
    assert load_genotype(f"  {V2}\n") == genotype
    assert load_genotype(BENCH) == parse_text(BENCH)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "empty genotype"),
        ("  ", "empty genotype"),
        (None, "empty genotype"),
        ("DARTS_V3", "unknown genotype .*no such file.*did you mean 'DARTS_V"),
        ("runs/genotype.json", "no genotype file runs/genotype.json"),
        ("missing.json", "no genotype file missing.json"),
        ("runs/s0", "no genotype file runs/s0"),
        (".", r"\. is a folder.*give \./genotype.json"),
        ("x" * 5000, "unknown genotype"),
        ("a\nb", "unknown genotype .*'a b'"),
        ("a\0b", "unknown genotype"),
        ("a\0b.json", "not a JSON genotype"),
        ("x" * 5000 + ".json", "cannot read genotype file .*too long"),
        ("Genotype(normal=[])", "has no field 'normal_concat'"),
    ],
)
def test_load_genotype_says_what_went_wrong(
    argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_genotype(argument)
    assert "\n" not in str(caught.value)


def test_pretty_shows_every_edge() -> None:
    shown = pretty(zoo.load("FairDARTS_A"))
    assert "normal cell, output 2 + 4 + 5" in shown
    assert "  2 <- 0 sep_conv_3x3   1 sep_conv_5x5" in shown
    assert "  3 <- (nothing)" in shown
