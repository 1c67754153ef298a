"""Initial weights: PyTorch's defaults, drawn in one call for the whole network.

PyTorch draws convolution and linear weights, and linear biases, from U(-b, b) with
b = 1 / sqrt(fan_in) (He et al. 2015 with a = sqrt(5)); batch norm starts at scale 1, bias 0.
One draw for all leaves keeps start-up short: a separate random call a leaf would compile
hundreds of generators.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.types import Weights


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Returns the fan-in of a leaf from its name and shape, 0 for one that is not random."""
    if name == "depthwise":  # [n, K, K, C]
        return shape[1] * shape[2]
    if name in ("pointwise", "linear"):  # [n, C, C'] and [C, classes]
        return shape[-2]
    if name == "conv":  # [n, K, K', C, C']
        return math.prod(shape[1:4])
    if name.startswith("bias_of_"):
        return int(name.removeprefix("bias_of_"))
    return 0


def initial_weights(key: jax.Array, shapes: Any) -> Weights:
    """Returns float32 weights for a pytree of `jax.ShapeDtypeStruct`.

    Args:
        key: PRNG key.
        shapes: the "params" collection of a module as given by `jax.eval_shape`.

    Returns:
        A pytree like `shapes`, of numpy arrays where the key is not traced.
    """
    paths, treedef = jax.tree.flatten_with_path(shapes)
    names = [path[-1].key for path, _ in paths]
    fans = [
        _fan_in(name, leaf.shape) for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    sizes = [
        leaf.size if fan else 0 for fan, (_, leaf) in zip(fans, paths, strict=True)
    ]
    drawn: Any = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    traced = isinstance(drawn, jax.core.Tracer)
    # Outside of a compiled program the leaves are cut on the host: as parts of a program
    # they are hundreds of loops, which take longer to compile than the whole network.
    array: Any = jnp if traced else np
    if not traced:
        drawn = np.asarray(drawn)
    leaves, start = [], 0
    for name, fan, size, (_, leaf) in zip(names, fans, sizes, paths, strict=True):
        if fan:
            values = drawn[start : start + size].reshape(leaf.shape)
            leaves.append(values * np.float32(1 / math.sqrt(fan)))
        else:
            leaves.append(array.full(leaf.shape, float(name == "scale"), array.float32))
        start += size
    return jax.tree.unflatten(treedef, leaves)
