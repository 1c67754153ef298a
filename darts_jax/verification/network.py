"""A derived network with auxiliary head against its golden file."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from darts_jax import interop
from darts_jax.models import make_network
from darts_jax.models.model import apply_with_outputs
from darts_jax.training.metrics import cross_entropy
from darts_jax.types import Weights
from darts_jax.verification.golden import (
    Check,
    Golden,
    nchw,
    read_batch,
    read_genotype,
    relative_error,
)


def verify_network(golden: Golden) -> Iterator[Check]:
    """Yields the checks of a derived network with auxiliary head: forward and gradients."""
    genotype = read_genotype(golden)
    size: dict[str, Any] = {
        "num_cells": int(golden["num_cells"]),
        "channels": int(golden["channels"]),
    }
    shape = golden["x"].shape
    model = make_network(
        genotype,
        image_shape=(shape[2], shape[3], shape[1]),
        num_classes=int(golden["num_classes"]),
        auxiliary=True,
        **size,
    )
    leaves = interop.network_leaves(genotype, auxiliary=True, **size)
    given = {k[2:]: golden[k].astype(np.float64) for k in golden if k[:2] == "w/"}
    weights, batch_stats = interop.from_reference(
        given, leaves, like=jax.eval_shape(model.init, jax.random.key(0))
    )
    batch = read_batch(golden, "x", "y")
    cells = tuple(f"cell{i}" for i in range(size["num_cells"]))
    apply = apply_with_outputs(model, cells)

    def loss(weights: Weights) -> tuple:
        (logits, auxiliary), stats, outputs = apply(
            weights, batch_stats, batch.images, train=True
        )
        value = cross_entropy(logits, batch.labels).mean()
        value += 0.4 * cross_entropy(auxiliary, batch.labels).mean()
        return value, (logits, auxiliary, stats, outputs)

    (value, (logits, auxiliary, stats, outputs)), grads = jax.jit(
        jax.value_and_grad(loss, has_aux=True)
    )(weights)
    for i, cell in enumerate(cells):
        output = nchw(outputs[cell])
        if i == 2 * size["num_cells"] // 3:
            output = output.clip(0)  # the reference's auxiliary head rectifies in place
        means = output.mean((0, 2, 3))
        wanted = golden[f"train_mode/{cell}_mean_per_channel"]
        yield Check(f"train_mode/{cell} means", relative_error(means, wanted))
    for name, ours in (
        ("logits", logits),
        ("logits_aux", auxiliary),
        ("loss_with_0.4_aux", value),
    ):
        error = relative_error(ours, golden[f"train_mode/{name}"])
        yield Check(f"train_mode/{name}", error)
    ours = interop.to_reference(grads, stats, leaves)
    for prefix, label, form in (
        ("dw/", "weight gradients", lambda x: x),
        ("dw_norm/", "weight gradient norms", np.linalg.norm),
        ("train_mode/bn_after/", "batch statistics", lambda x: x),
    ):
        given = {k[len(prefix) :]: golden[k] for k in golden if k.startswith(prefix)}
        if not given:  # a file may hold all gradients, or norms of some
            continue
        yield Check(label, relative_error({k: form(ours[k]) for k in given}, given))
    logits, _ = jax.jit(model.apply, static_argnames="train")(
        weights, batch_stats, batch.images, train=False
    )
    error = relative_error(logits, golden["eval_mode/logits"])
    yield Check("eval_mode/logits", error)
    loss_value = cross_entropy(logits, batch.labels).mean()
    error = relative_error(loss_value, golden["eval_mode/loss"])
    yield Check("eval_mode/loss", error)
