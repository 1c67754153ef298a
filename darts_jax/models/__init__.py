"""Networks as pure functions; the only room that imports Flax."""

from darts_jax.models.layers import KEPT
from darts_jax.models.model import count_multiply_adds, count_parameters
from darts_jax.models.network import make_network
from darts_jax.models.packing import pack_as, packed, unpack
from darts_jax.models.supernet import make_supernet

__all__ = [
    "KEPT",
    "count_multiply_adds",
    "count_parameters",
    "make_network",
    "make_supernet",
    "pack_as",
    "packed",
    "unpack",
]
