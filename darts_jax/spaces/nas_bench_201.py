"""The NAS-Bench-201 space: Dong and Yang 2020, arXiv:2001.00326, section 2.1."""

from collections.abc import Mapping, Sequence

from darts_jax.spaces.build import make_space
from darts_jax.spaces.space import Space

PRIMITIVES: tuple[str, ...] = (  # the benchmark's order
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)


def nas_bench_201(
    *,
    num_nodes: int = 3,
    primitives: Sequence[str] | None = None,
    edge_primitives: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Space:
    """Returns the NAS-Bench-201 space: one cell, every edge keeps its best primitive.

    Raises UserError for unknown or repeated primitives and wrong counts.
    """
    return make_space(
        "nas_bench_201",
        cell_kinds=("cell",),
        num_inputs=1,
        num_nodes=num_nodes,
        own=PRIMITIVES,
        primitives=primitives,
        edge_primitives=edge_primitives,
        edges_per_node=None,
        output="last",
        skeleton="nas_bench_201",
    )
