"""Genotype drawings: every edge is there, names do not overlap, files are well formed."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from darts_jax.genotype import CellGenotype, Genotype, parse_text
from darts_jax.report import draw
from darts_jax.report.line_chart import nice_ticks
from darts_jax.spaces import SPACES, random_genotype

SVG = "{http://www.w3.org/2000/svg}"
NASNET_LIKE = Genotype(
    "darts",
    {
        "normal": CellGenotype(
            (
                (("sep_conv_5x5", 1), ("sep_conv_3x3", 0)),
                (("sep_conv_7x7", 0), ("conv_7x1_1x7", 0)),
                (("avg_pool_3x3", 1), ("skip_connect", 0)),
                (("avg_pool_3x3", 0), ("avg_pool_3x3", 0)),
                (("sep_conv_3x3", 3), ("skip_connect", 1)),
            ),
            (4, 5, 6),
        )
    },
)
CHAIN = Genotype(
    "darts",
    {
        "normal": CellGenotype(
            tuple((("noise", n + 1), ("none", 0)) for n in range(4)), (5,)
        )
    },
)
UNUSED_NODE = Genotype(
    "darts", {"normal": CellGenotype(((("skip_connect", 0),), ()), (2,))}
)
NAS_BENCH = parse_text(
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|avg_pool_3x3~1|none~2|"
)
GENOTYPES = {
    "nasnet": NASNET_LIKE,
    "chain": CHAIN,
    "unused": UNUSED_NODE,
    "nas_bench_201": NAS_BENCH,
} | {
    f"darts_{seed}": random_genotype(SPACES["darts"](), np.random.default_rng(seed))
    for seed in range(6)
}


def texts(picture):
    return ["".join(node.itertext()) for node in picture.iter(f"{SVG}text")]


@pytest.mark.parametrize("genotype", GENOTYPES.values(), ids=GENOTYPES)
def test_svg_names_every_edge_and_node(genotype):
    picture = ElementTree.fromstring(draw.svg(genotype))
    shown = texts(picture)
    for kind, cell in genotype.cells.items():
        assert draw.cell_title(kind) in shown
        for index in range(len(cell.nodes)):
            assert shown.count(str(index)) >= 1
    wanted = sorted(
        op for cell in genotype.cells.values() for node in cell.nodes for op, _ in node
    )
    known = set(wanted)
    assert sorted(text for text in shown if text in known) == wanted
    assert shown.count("ck") == len(genotype.cells)
    edges = sum(
        len(draw.cell_edges(cell)) + len(node_ops(cell))
        for cell in genotype.cells.values()
    )
    # a path an edge, and one more for the arrow behind each name
    assert len(list(picture.iter(f"{SVG}path"))) == edges


def node_ops(cell):
    return [op for node in cell.nodes for op, _ in node]


@pytest.mark.parametrize("genotype", GENOTYPES.values(), ids=GENOTYPES)
def test_frames_do_not_overlap_and_lie_inside(genotype):
    for picture in draw.cell_pictures(genotype).values():
        root = ElementTree.fromstring(picture)
        width, height = (float(root.get(name)) for name in ("width", "height"))
        boxes = [
            tuple(float(rect.get(name)) for name in ("x", "y", "width", "height"))
            for rect in root.iter(f"{SVG}rect")
        ]
        for x, y, w, h in boxes:
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        for a, b in itertools.combinations(boxes, 2):
            beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
            above = a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
            assert beside or above, (a, b)


@pytest.mark.parametrize("genotype", GENOTYPES.values(), ids=GENOTYPES)
def test_dot_and_mermaid_hold_every_edge(genotype):
    dot, mermaid = draw.dot(genotype), draw.mermaid(genotype)
    total = 0
    for number, cell in enumerate(genotype.cells.values()):
        total += len(draw.cell_edges(cell))
        for source, target, primitive in draw.cell_edges(cell):
            start = f"g{number}_n{source}"
            end = f"g{number}_out" if target < 0 else f"g{number}_n{target}"
            label = f' [label="{primitive}"]' if primitive else ""
            assert f"    {start} -> {end}{label};" in dot.splitlines()
            label = f'|"{primitive}"|' if primitive else ""
            assert f"    {start} -->{label} {end}" in mermaid.splitlines()
    assert dot.count("->") == total and mermaid.count("-->") == total
    assert dot.count("{k-1}") == mermaid.count("{k-1}") == len(genotype.cells)


def test_nodes_are_named_as_in_the_papers():
    cell = NASNET_LIKE.cells["normal"]
    assert [draw.node_name(cell, i) for i in (0, 1, 2, 6, -1)] == [
        *("c_{k-2}", "c_{k-1}", "0", "4", "c_{k}")
    ]
    assert [draw.cell_title(kind) for kind in ("reduce", "cell")] == [
        "reduce cell",
        "cell",
    ]
    assert draw.node_name(NAS_BENCH.cells["cell"], 0) == "c_{k-1}"


@pytest.mark.parametrize(
    ("low", "high", "least", "ticks"),
    [
        (0.0, 1.0, 0.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 2.0, 1.0, [0, 1, 2]),
        (-3.0, 7.0, 0.0, [-2, 0, 2, 4, 6]),
        (5.0, 5.0, 1.0, [5]),
    ],
)
def test_ticks_are_round(low, high, least, ticks):
    assert nice_ticks(low, high, least=least) == pytest.approx(ticks)
