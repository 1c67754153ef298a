"""The wall around Flax: a Linen module becomes `Model(init, apply)`; counting.

Outside models/ a network is two pure functions of pytrees (types.Model).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.models.initial import initial_weights
from darts_jax.models.layers import Conv, DepthwiseConv, Linear, PointwiseConv
from darts_jax.types import BatchStats, Model, Weights


def _shapes(
    module: nn.Module, image_shape: tuple[int, ...], sample: dict[str, Any]
) -> Any:
    """Returns the module's variables as shapes, without running it."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.random.key(0)
    rngs = {"params": key, "noise": key, "drop_path": key}
    return jax.eval_shape(lambda x: module.init(rngs, x, sample, train=False), images)


def as_model(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    sample: dict[str, Any],
    cell_arguments: Callable[..., dict[str, Any]] | None = None,
) -> Model:
    """Returns `Model(init, apply)` for a skeleton.

    Args:
        module: a skeleton, called as `module(images, cell_arguments, train=...)`.
        image_shape: (H, W, C).
        sample: cell arguments of the right shapes, for tracing the shapes of the weights.
        cell_arguments: turns what `apply` gets after the images into cell arguments; the
            default takes edge weights.
    """
    pack = cell_arguments or (lambda edge_weights: {"edge_weights": edge_weights})

    def init(key: jax.Array) -> tuple[Weights, BatchStats]:
        shapes = _shapes(module, image_shape, sample)
        stats = jax.tree.map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var")),
            shapes.get("batch_stats", {}),
        )
        return initial_weights(key, shapes["params"]), stats

    def apply(
        weights: Weights,
        batch_stats: BatchStats,
        images: jax.Array,
        *args: Any,
        train: bool,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> tuple[Any, BatchStats]:
        variables = {"params": weights, "batch_stats": batch_stats}
        key = jax.random.key(0) if key is None else key
        rngs = {"noise": key, "drop_path": key}
        logits, updated = module.apply(
            variables,
            images,
            pack(*args, **kwargs),
            train=train,
            rngs=rngs,
            mutable=["batch_stats"],
        )
        return logits, updated.get("batch_stats", batch_stats)

    return Model(init, apply)


def count_parameters(weights: Weights, *, auxiliary: bool = False) -> int:
    """Returns the number of parameters; the auxiliary head counts only if asked for."""
    if not auxiliary:
        weights = {name: leaf for name, leaf in weights.items() if name != "auxiliary"}
    return sum(leaf.size for leaf in jax.tree.leaves(weights))


def count_multiply_adds(
    model: Model, image_shape: tuple[int, int, int], *args: Any
) -> int:
    """Returns the multiply-adds of one image's forward pass, in evaluation mode.

    Convolutions and linear layers count; batch norm, pools and sums do not, nor does the
    auxiliary head (it does not run in evaluation).

    Args:
        model: the network or supernet.
        image_shape: (H, W, C).
        *args: what `model.apply` takes after the images.
    """
    total = 0

    def counting(next_call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
        nonlocal total
        out = next_call(*call_args, **call_kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return out
        if isinstance(layer, DepthwiseConv):
            total += out.size * layer.kernel_size**2
        elif isinstance(layer, PointwiseConv):
            total += out.size * call_args[0].shape[1]
        elif isinstance(layer, Conv):
            total += out.size * math.prod(layer.kernel_size) * call_args[0].shape[0]
        elif isinstance(layer, Linear):
            total += out.size * call_args[0].shape[-1]
        return out

    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(counting):
        jax.eval_shape(
            lambda w, s, x: model.apply(w, s, x, *args, train=False),
            weights,
            stats,
            images,
        )
    return total
