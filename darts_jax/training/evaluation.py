"""Evaluation over a whole split, every image exactly once, in inference mode."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.data import StreamedImages, normalise, stream_batches
from darts_jax.training.metrics import correct_in_top, cross_entropy
from darts_jax.training.parallel import DATA, Layout, process
from darts_jax.types import Model

Evaluate = Callable[..., dict[str, float]]


def make_evaluate(
    model: Model,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    layout: Layout,
) -> Evaluate:
    """Returns `evaluate(weights, batch_stats, images, labels, *rest) -> metrics`.

    images uint8 `[N, H, W, C]`, in memory or streamed, labels `[N]`, rest what `model.apply`
    takes after the images (edge weights for a supernet). The metrics are loss, accuracy and
    top5_accuracy, means over the N images. The last batch is filled up with the first
    images, which do not count, so that one program serves all batches. Every batch is
    split among the devices of `layout`.
    """

    @partial(jax.jit, out_shardings=layout.everywhere)
    def count(
        weights: Any, stats: Any, images: Any, labels: Any, real: Any, *rest: Any
    ) -> dict[str, jax.Array]:
        images, labels, real = layout.split((images, labels, real))
        inputs = normalise(images, mean=mean, std=std)
        logits, _ = model.apply(weights, stats, inputs, *rest, train=False)
        values = {
            "loss": cross_entropy(logits, labels),
            "accuracy": correct_in_top(logits, labels, 1),
            "top5_accuracy": correct_in_top(logits, labels, 5),
        }
        return {name: jnp.where(real, v, 0).sum() for name, v in values.items()}

    def evaluate(
        weights: Any, stats: Any, images: Any, labels: Any, *rest: Any
    ) -> dict[str, float]:
        number = len(labels)
        devices = layout.mesh.shape[DATA]
        size = -(-min(batch_size, number) // devices) * devices
        places = np.arange(-(-number // size) * size).reshape(-1, size)
        totals: dict[str, float] = {}
        batches = _batches(images, labels, places % number, layout)
        for (some, their_labels), real in zip(batches, places < number, strict=True):
            counted = count(weights, stats, some, their_labels, real, *rest)
            for name, value in counted.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / number for name, total in totals.items()}

    return evaluate


def _batches(
    images: Any, labels: Any, rows: np.ndarray, layout: Layout
) -> Iterable[tuple[Any, Any]]:
    """Yields images and labels of every row of `rows` `[steps, B]`."""
    if isinstance(images, StreamedImages):
        keep = images.options.test_crop
        put = layout.put_part
        return stream_batches(
            images, labels, rows, keep=keep, process=process(), put=put
        )
    return ((images[chosen], labels[chosen]) for chosen in rows)
