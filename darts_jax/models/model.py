"""The wall around Flax: a Linen module becomes `Model(init, apply)`; counting.

Outside models/ a network is two pure functions of pytrees (types.Model).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.errors import unknown
from darts_jax.models.initial import initial_weights
from darts_jax.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Linear,
    PointwiseConv,
    running_average,
)
from darts_jax.models.operations import OPERATIONS
from darts_jax.models.packing import pack_as, unpack
from darts_jax.types import BatchStats, Model, Weights

PRECISIONS = ("float32", "bfloat16")


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
    cell_arguments: Callable[..., dict[str, Any]],
    *,
    precision: str = "float32",
) -> Model:
    """Returns `Model(init, apply)` for a skeleton; `apply` takes `Packed` states as well.

    Args:
        module: a skeleton, called as `module(images, cell_arguments, train=...)`.
        image_shape: (H, W, C).
        sample: cell arguments of the right shapes, for tracing the shapes of the weights.
        cell_arguments: turns what `apply` gets after the images into cell arguments.
        precision: "bfloat16" casts the images, and with them all activations; what lasts
            stays float32, edge weights too. "float32" leaves types as they come.

    Raises:
        UserError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise unknown("config.precision", precision, PRECISIONS)

    def init(key: jax.Array) -> tuple[Weights, BatchStats]:
        shapes = _shapes(module, image_shape, sample)
        stats = jax.tree.map_with_path(
            # With its dtype given: a weakly typed leaf would compile the step twice.
            lambda path, leaf: np.full(
                leaf.shape, float(path[-1].key == "var"), leaf.dtype
            ),
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
        params, running = unpack((weights, batch_stats))
        variables = {"params": params, "batch_stats": running}
        key = jax.random.key(0) if key is None else key
        if precision == "bfloat16":
            images = images.astype(jnp.bfloat16)
        rngs = {"noise": key, "drop_path": key}
        logits, updated = module.apply(
            variables,
            images,
            cell_arguments(*args, **kwargs),
            train=train,
            rngs=rngs,
            mutable=["batch_stats"],
        )
        if not train:
            return logits, batch_stats
        moments = pack_as(updated.get("batch_stats", {}), batch_stats)
        return logits, running_average(batch_stats, moments)

    return Model(init, apply)


def make_operation(
    primitive: str, *, channels: int, stride: int, affine: bool
) -> Callable[..., tuple[jax.Array, BatchStats]]:
    """Returns one primitive as a function, for tests and comparisons.

    Args:
        primitive: its name.
        channels: of input and output.
        stride: 1 or 2.
        affine: whether its batch norm is.

    Returns:
        `apply(weights, batch_stats, x, *, train) -> (y, new_batch_stats)` with x and y
        `[C, B, H, W]`.
    """
    norm = functools.partial(BatchNorm, affine=affine)
    module = OPERATIONS[primitive](channels, stride, 1, norm)

    def apply(
        weights: Weights, batch_stats: BatchStats, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, BatchStats]:
        variables = {"params": weights, "batch_stats": batch_stats}
        y, updated = module.apply(variables, x, train=train, mutable=["batch_stats"])
        if not train:
            return y[0], batch_stats
        return y[0], running_average(batch_stats, updated.get("batch_stats", {}))

    return apply


def apply_with_outputs(model: Model, names: tuple[str, ...]) -> Callable[..., Any]:
    """Returns `model.apply` that also returns the outputs of some modules.

    Args:
        model: a network or supernet.
        names: of the modules, as they stand in the weights ("stem_norm0", "cell3").

    Returns:
        A function like `model.apply` returning (logits, new_batch_stats, {name: output}).
    """

    def apply(*args: Any, **kwargs: Any) -> Any:
        outputs: dict[str, jax.Array] = {}

        def keep(next_call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
            out = next_call(*call_args, **call_kwargs)
            if context.module.name in names and context.method_name == "__call__":
                outputs[context.module.name] = out
            return out

        with nn.intercept_methods(keep):
            logits, stats = model.apply(*args, **kwargs)
        return logits, stats, outputs

    return apply


def count_parameters(weights: Weights, *, auxiliary: bool = False) -> int:
    """Returns the number of parameters; the auxiliary head counts only if asked for."""
    weights = unpack(weights)
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
