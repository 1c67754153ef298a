"""S1 to S4, the reduced DARTS spaces in which plain DARTS fails.

Zela et al. 2020, arXiv:1909.09656, section 4.1. The primitives of every edge are data:
robust_darts.json, collected from github.com/automl/RobustDARTS.
"""

import json
from importlib import resources

from darts_jax.spaces.darts import darts
from darts_jax.spaces.space import Space


def darts_s1(*, num_nodes: int = 4) -> Space:
    """Returns S1: two primitives for each of the 14 edges of each cell kind.

    Raises UserError if num_nodes is not 4: the lists are tied to the edges.
    """
    return darts(num_nodes=num_nodes, edge_primitives=_table()["S1"], name="darts_s1")


def darts_s2(*, num_nodes: int = 4) -> Space:
    """Returns S2: skip_connect or sep_conv_3x3 on every edge."""
    return darts(
        num_nodes=num_nodes, primitives=_table()["S2"]["every_edge"], name="darts_s2"
    )


def darts_s3(*, num_nodes: int = 4) -> Space:
    """Returns S3: none, skip_connect or sep_conv_3x3 on every edge."""
    return darts(
        num_nodes=num_nodes, primitives=_table()["S3"]["every_edge"], name="darts_s3"
    )


def darts_s4(*, num_nodes: int = 4) -> Space:
    """Returns S4: sep_conv_3x3 or noise (standard normal) on every edge."""
    return darts(
        num_nodes=num_nodes, primitives=_table()["S4"]["every_edge"], name="darts_s4"
    )


def _table() -> dict:
    text = (
        resources.files("darts_jax.spaces")
        .joinpath("robust_darts.json")
        .read_text("utf-8")
    )
    return json.loads(text)
