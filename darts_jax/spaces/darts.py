"""The DARTS space: Liu et al. 2019, arXiv:1806.09055, section 3.1 and appendix A."""

from collections.abc import Mapping, Sequence

from darts_jax.spaces.build import make_space
from darts_jax.spaces.space import Space

PRIMITIVES: tuple[str, ...] = (  # the reference's order: columns of its saved alphas
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def darts(
    *,
    num_nodes: int = 4,
    primitives: Sequence[str] | None = None,
    edge_primitives: Mapping[str, Sequence[Sequence[str]]] | None = None,
    name: str = "darts",
) -> Space:
    """Returns the DARTS space: two cell kinds, a node keeps its two strongest edges.

    Raises UserError for unknown or repeated primitives and wrong counts.
    """
    return make_space(
        name,
        cell_kinds=("normal", "reduce"),
        num_inputs=2,
        num_nodes=num_nodes,
        own=PRIMITIVES,
        primitives=primitives,
        edge_primitives=edge_primitives,
        edges_per_node=2,
        output="all",
        skeleton="darts",
    )
