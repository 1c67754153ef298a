"""What the steps of a run read: rows of data on the device, or batches streamed from disk.

Both hand the compiled step `(order, data)`. On the device `data` holds whole splits and
`order` the rows of every batch; streamed, `data` is the batch itself and `order` is None.
Which images make a batch is the same either way.
"""

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.data import Split, StreamedImages, crop_key, stream_batches
from darts_jax.training.setup import DeviceSplit

Order = dict[str, jax.Array]  # {part: int32 [steps, B]}
MakeOrder = Callable[[Any, int], Order]  # (state, epoch) -> the rows of that epoch


class Feed(Protocol):
    """What `loop.run_epochs` asks for data, epoch by epoch and call by call."""

    def order(self, state: Any, epoch: int) -> Any:
        """Begins an epoch at `state.step`; what it returns goes to `arguments`."""

    def arguments(self, order: Any) -> tuple[Order | None, dict[str, DeviceSplit]]:
        """Returns what the compiled step takes after state and sums, for the next step."""

    def close(self) -> None:
        """Called at the end, however it comes: ends the threads of the epoch."""


def make_feed(
    parts: Mapping[str, DeviceSplit | Split],
    make_order: MakeOrder,
    *,
    steps: int,
    crops: Mapping[str, int] | None = None,
    process: tuple[int, int] = (0, 1),
    put: Callable[[Any], Any] = jax.device_put,
) -> Feed:
    """Returns the feed of `parts`, streamed if their images are `StreamedImages`.

    make_order: the rows of the parts. steps: an epoch. crops: {part: purpose of its
    randomness} where the random resized crops are cut from the files; None: elsewhere.
    process, put: of `stream_batches`, for a run of several processes.
    """
    if any(isinstance(part.images, StreamedImages) for part in parts.values()):
        stream = partial(stream_batches, process=process, put=put)
        return StreamedFeed(parts, make_order, steps, crops or {}, stream)
    return ResidentFeed(parts, make_order)


def take(data: DeviceSplit, order: jax.Array | None, step: jax.Array) -> DeviceSplit:
    """Returns the batch of a step inside the compiled program: gathered, or as it is."""
    if order is None:
        return data
    rows = order[step]
    return DeviceSplit(data.images[rows], data.labels[rows])


class ResidentFeed:
    """Data on the device, gathered by the compiled step."""

    def __init__(self, parts: Mapping[str, Any], make_order: MakeOrder) -> None:
        self.parts, self.order = dict(parts), make_order

    def arguments(self, order: Order) -> tuple[Order, dict[str, DeviceSplit]]:
        """Returns the rows and the splits: an argument, for a closed-over array would be a
        constant of the program."""
        return order, self.parts

    def close(self) -> None:
        """Nothing is open."""


class StreamedFeed:
    """Data on disk: a stream a part, begun anew in every epoch at the step where it is."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        make_order: MakeOrder,
        steps: int,
        crops: Mapping[str, int],
        stream: Callable[..., Any],
    ) -> None:
        self.parts, self.make_order = parts, make_order
        self.steps, self.crops, self.stream = steps, crops, stream
        self._open: dict[str, Generator[tuple[Any, Any], None, None]] = {}

    def order(self, state: Any, epoch: int) -> dict[str, Any]:
        """Begins the streams of an epoch at `state.step`."""
        self.close()
        first = int(state.step) % self.steps
        for name, rows in self.make_order(state, epoch).items():
            part, key = self.parts[name], None
            if name in self.crops:
                key = crop_key(state.key, self.crops[name], epoch)
            self._open[name] = self.stream(
                part.images, part.labels, np.asarray(rows), first=first, crop_key=key
            )
        return self._open

    def arguments(self, order: dict[str, Any]) -> tuple[None, dict[str, DeviceSplit]]:
        """Returns the next batch of every part."""
        return None, {name: DeviceSplit(*next(order[name])) for name in order}

    def shapes(self, size: int) -> dict[str, Any]:
        """Returns the shapes of the batches of `size` images, to compile the step for."""
        return {
            name: jax.eval_shape(
                lambda shape=part.images.shape[1:]: DeviceSplit(
                    jnp.zeros((size, *shape), jnp.uint8), jnp.zeros(size, jnp.int32)
                )
            )
            for name, part in self.parts.items()
        }

    def close(self) -> None:
        """Ends the threads; images that are being decoded are finished."""
        for stream in self._open.values():
            stream.close()
        self._open = {}
