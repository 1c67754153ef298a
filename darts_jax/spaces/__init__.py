"""Search spaces as data: `SPACES["darts"](num_nodes=4) -> Space`.

A new space is one file with a builder and one line here.
"""

from collections.abc import Callable

from darts_jax.spaces.darts import darts
from darts_jax.spaces.members import check_genotype, random_genotype
from darts_jax.spaces.nas_bench_201 import nas_bench_201
from darts_jax.spaces.robust_darts import darts_s1, darts_s2, darts_s3, darts_s4
from darts_jax.spaces.space import Space
from darts_jax.spaces.tiny import tiny

__all__ = ["SPACES", "Space", "check_genotype", "random_genotype"]

SPACES: dict[str, Callable[..., Space]] = {
    "darts": darts,
    "darts_s1": darts_s1,
    "darts_s2": darts_s2,
    "darts_s3": darts_s3,
    "darts_s4": darts_s4,
    "nas_bench_201": nas_bench_201,
    "tiny": tiny,
}
