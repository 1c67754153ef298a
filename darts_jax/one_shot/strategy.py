"""`OneShot`: what a weight-sharing method is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from darts_jax.genotype import Genotype
from darts_jax.spaces import Space
from darts_jax.types import Alphas, EdgeWeights


class OneShot(NamedTuple):
    """A one-shot method as pure functions along independent axes.

    initial_alphas: `(space, key, scale) -> alphas`.
    relax: `(space, alphas) -> edge weights`, what the mixed operations multiply by.
    select: `(space, edge weights as numpy arrays) -> Genotype`.
    """

    initial_alphas: Callable[[Space, jax.Array, float], Alphas]
    relax: Callable[[Space, Alphas], EdgeWeights]
    select: Callable[[Space, Mapping[str, Any]], Genotype]
