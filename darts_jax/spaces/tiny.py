"""A small DARTS space for tests and first steps: it compiles in seconds on a CPU."""

from collections.abc import Mapping, Sequence

from darts_jax.spaces.darts import darts
from darts_jax.spaces.space import Space

PRIMITIVES: tuple[str, ...] = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


def tiny(
    *,
    num_nodes: int = 2,
    primitives: Sequence[str] | None = None,
    edge_primitives: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Space:
    """Returns the DARTS space with two nodes and four primitives."""
    return darts(
        num_nodes=num_nodes,
        primitives=PRIMITIVES
        if primitives is None and edge_primitives is None
        else primitives,
        edge_primitives=edge_primitives,
        name="tiny",
    )
