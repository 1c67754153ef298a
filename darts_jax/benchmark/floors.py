"""The least time a step can take on a machine of known memory bandwidth.

Supernets are bound by memory traffic. Of every image a pass must at least store

    stem        S C P                       S the stem multiplier, P pixels
    each cell   2 c P                       its two projected inputs
              + sum over source states c P            the rectified state
              + sum over edges k c P'                 k outputs of convolutions: 4 for a
                                                      separable one, 2 for a dilated, 1 dense
              + sum over source states, pools c P'    a pool is the same for all its edges
              + nodes c P'                            the nodes

floats, with c the cell's channels, P its pixels at its inputs and P' at its nodes; batch
norm, weighted sums and shared rectifiers are taken to be recomputed. Each float is written
and read in the forward pass, read again, and its gradient written and read in the backward
pass: 5 transfers. At C = 16, 8 cells, 32x32 that is 13.5 million floats an image.
"""

from collections.abc import Iterable

from darts_jax import zoo
from darts_jax.benchmark.sizes import USUAL, WORKLOADS, Size, Variant
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.spaces import SPACES, Space

TRANSFERS = 5
FLOAT_BYTES = {"float32": 4, "bfloat16": 2}
OUTPUTS = {"sep_conv": 4, "dil_conv": 2, "nor_conv": 1, "conv_7x1": 2}  # by prefix

Edge = tuple[str, int]  # primitive, source state


def floats_of_cell(
    edges: Iterable[Edge],
    *,
    channels: int,
    pixels: tuple[int, int],
    num_inputs: int,
    num_nodes: int,
) -> int:
    """Returns the floats that one cell stores of an image, without its projected inputs.

    Args:
        edges: (primitive, source) of every operation.
        channels: of the cell.
        pixels: of a feature map at its inputs and at its nodes.
        num_inputs: inputs of a cell, the first states.
        num_nodes: nodes of a cell.
    """
    listed = list(edges)
    before, after = pixels
    rectified = sum(before if s < num_inputs else after for s in {s for _, s in listed})
    pools = {edge for edge in listed if "_pool_" in edge[0]}
    outputs = len(pools)
    for primitive, source in listed:
        outputs += OUTPUTS.get(primitive[:8], 0)
        # A skip connection of stride 2 is a convolution.
        strided = before != after and source < num_inputs
        outputs += primitive == "skip_connect" and strided
    return channels * (rectified + (outputs + num_nodes) * after)


def _mixed_edges(space: Space, kind: str) -> list[Edge]:
    return [
        (primitive, source)
        for e, (source, _) in enumerate(space.edges)
        for primitive in space.allowed(kind, e)
    ]


def _genotype_edges(cell: CellGenotype) -> list[Edge]:
    return [(primitive, source) for node in cell.nodes for primitive, source in node]


def _darts_floats(
    cells: dict[str, list[Edge]],
    *,
    num_cells: int,
    channels: int,
    stem: int,
    side: int,
    num_nodes: int,
) -> int:
    """Returns the floats an image of a DARTS network with these cells' edges."""
    total = stem * channels * side**2
    for i in range(num_cells):
        kind, before = "normal", side**2
        if i in (num_cells // 3, 2 * num_cells // 3):
            kind, channels, side = "reduce", 2 * channels, -(-side // 2)
        total += 2 * channels * before
        total += floats_of_cell(
            cells[kind],
            channels=channels,
            pixels=(before, side**2),
            num_inputs=2,
            num_nodes=num_nodes,
        )
    return total


def _nas_bench_201_floats(size: Size, space: Space) -> int:
    """Returns the floats an image of the NAS-Bench-201 supernet, residual blocks included."""
    channels, side = size.channels, size.image[0]
    total = channels * side**2
    for stage in range(3):
        if stage:
            before, side = side**2, -(-side // 2)
            # The rectified input and its mean; two convolutions, a rectifier, the shortcut.
            total += channels * (before + side**2) + 4 * 2 * channels * side**2
            channels *= 2
        total += size.num_cells * floats_of_cell(
            _mixed_edges(space, "cell"),
            channels=channels,
            pixels=(side**2, side**2),
            num_inputs=1,
            num_nodes=space.num_nodes,
        )
    return total


def floats_per_image(size: Size, workload: str) -> int:
    """Returns how many floats of an image one pass of a workload must store."""
    if WORKLOADS[workload].network == "network":
        chosen = size.retrain
        assert chosen is not None
        genotype = Genotype.from_json(zoo.entry(chosen.genotype)["genotype"])
        cells = {k: _genotype_edges(cell) for k, cell in genotype.cells.items()}
        return _darts_floats(
            cells,
            num_cells=chosen.num_cells,
            channels=chosen.channels,
            stem=size.stem_multiplier,
            side=size.image[0],
            num_nodes=len(genotype.cells["normal"].nodes),
        )
    space = SPACES[size.space]()
    if space.skeleton != "darts":
        return _nas_bench_201_floats(size, space)
    return _darts_floats(
        {kind: _mixed_edges(space, kind) for kind in space.cell_kinds},
        num_cells=size.num_cells,
        channels=size.channels,
        stem=size.stem_multiplier,
        side=size.image[0],
        num_nodes=space.num_nodes,
    )


def floor_bytes(size: Size, workload: str, variant: Variant = USUAL) -> int:
    """Returns the bytes that one step must move, of all seeds."""
    batch = size.batch
    if WORKLOADS[workload].network == "network":
        assert size.retrain is not None
        batch = size.retrain.batch
    bytes_per_image = FLOAT_BYTES[variant.precision] * floats_per_image(size, workload)
    passes = WORKLOADS[workload].passes * variant.seeds
    return passes * TRANSFERS * batch * bytes_per_image
