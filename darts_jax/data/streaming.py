"""Images that stay on disk, read and decoded ahead of the steps that train on them.

There is no iterator state to save. Which images make a batch is decided by the same
functions as for data on the device (batches.py), and the crop of an image is drawn from
(key, purpose, epoch, its place in the epoch): a batch is a function of (seed, epoch, step),
so a resumed run starts a new stream at its step and goes on bit for bit, whatever the number
of workers or processes.

Grain reads: `workers` threads that decode in the order of the batches, ahead by `prefetch`
batches. Threads serve because Pillow decodes and resizes without Python's lock.
"""

from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from darts_jax.data.images import decode
from darts_jax.errors import UserError

MODES = ("auto", "always", "never")
OpenImage = Callable[[int], tuple[Path | BinaryIO, str]]


class Streaming(NamedTuple):
    """Whether and how a data set is streamed.

    mode: "always", "never", or "auto": when its decoded images exceed `resident_gib`.
    resident_gib: GiB. workers: decoding threads of a stream; 0: the training thread decodes.
    prefetch: batches on the device ahead of the step. test_crop: share of each side that the
    central crop of a test image keeps.
    """

    mode: str = "never"
    resident_gib: float = 4.0
    workers: int = 4
    prefetch: int = 2
    test_crop: float = 1.0


class StreamedImages:
    """Images uint8 `[N, H, W, C]` on disk: shaped like an array, and indexing makes a view.

    open_image: index -> (file or its bytes, what to call it in an error); may be called from
        several threads.
    shape: `[N, H, W, C]`, H and W what the images are brought to.
    rows: the images of this view, int `[n]`; None: all N.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        open_image: OpenImage,
        shape: tuple[int, int, int, int],
        options: Streaming,
        rows: np.ndarray | None = None,
    ) -> None:
        self._open_image = open_image
        self._rows = np.arange(shape[0]) if rows is None else rows
        self.shape = (len(self._rows), *shape[1:])
        self.options = options

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> "StreamedImages":
        """Returns the view of `rows`; nothing is read."""
        chosen = self._rows[rows]
        return StreamedImages(self._open_image, self.shape, self.options, chosen)

    def read(
        self, row: int, *, keep: float = 1.0, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns image `row` as uint8 `[H, W, C]`; keep, rng and errors: `images.decode`."""
        file, name = self._open_image(int(self._rows[row]))
        _, height, width, channels = self.shape
        return decode(
            file, (height, width), name=name, channels=channels, keep=keep, rng=rng
        )


class _Slots:
    """The images of a run of batches, in order: what Grain's threads index."""

    def __init__(
        self,
        images: StreamedImages,
        rows: np.ndarray,
        slots: np.ndarray,
        crop_key: tuple[int, ...] | None,
        keep: float,
    ) -> None:
        self._images, self._rows, self._slots = images, rows, slots
        self._crop_key, self._keep = crop_key, keep

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        rng = None
        if self._crop_key is not None:
            rng = np.random.default_rng((*self._crop_key, int(self._slots[index])))
        return self._images.read(self._rows[index], keep=self._keep, rng=rng)


def crop_key(key: jax.Array, purpose: int, epoch: int) -> tuple[int, ...]:
    """Returns the whole numbers that seed the crops of an epoch; `key` is the run's."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return (*map(int, words), purpose, epoch)


def stream_batches(
    images: StreamedImages,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    first: int = 0,
    crop_key: tuple[int, ...] | None = None,
    keep: float = 1.0,
    process: tuple[int, int] = (0, 1),
    put: Callable[[Any], Any] = jax.device_put,
) -> Generator[tuple[Any, Any], None, None]:
    """Yields (images uint8 `[b, H, W, C]`, labels int32 `[b]`), a batch a row of `rows`.

    rows: int `[steps, B]`, of `epoch_batches` or `iid_batches`. first: the step to begin at.
    crop_key: of `crop_key`; the images get random resized crops of the whole file, seeded
        by it and their slot in the epoch; None: a central crop that keeps `keep` a side.
    process: (index, count); process i of n reads block i of every batch, b = B / n, so that
        the blocks side by side are the batch of one process.
    put: moves a tree of arrays to the device; called `prefetch` batches ahead.

    Close the generator to end its threads early. Raises `UserError` when an image cannot be
    read or the batch does not divide among the processes.
    """
    steps, size = rows.shape
    index, count = process
    if size % count:
        raise UserError(
            f"config.batch_size={size} does not divide among {count} processes: choose "
            f"{max(1, size // count) * count} or {-(-size // count) * count}"
        )
    share = slice(index * (size // count), (index + 1) * (size // count))
    slots = np.arange(steps * size).reshape(steps, size)[first:, share]
    mine = rows[first:, share]
    source = _Slots(images, mine.ravel(), slots.ravel(), crop_key, keep)
    return _send(source, labels[mine], images.options, put)


def _send(
    source: _Slots, labels: np.ndarray, options: Streaming, put: Callable[[Any], Any]
) -> Generator[tuple[Any, Any], None, None]:
    """Reads the batches of `labels` `[steps, b]` and sends each ahead of its use."""
    if len(source) == 0:
        return
    size = labels.shape[1]
    ahead: deque[tuple[Any, Any]] = deque()
    batches = _read(source, size, options)
    try:
        for step, pixels in enumerate(batches):
            ahead.append(put((pixels, labels[step])))
            if len(ahead) > options.prefetch:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        batches.close()


def _read(source: _Slots, size: int, options: Streaming) -> Any:
    """Returns Grain's iterator over batches `[size, H, W, C]`; it has `close()`."""
    import grain  # takes its time, and only streams need it

    # As many images read ahead on the host as are on their way to the device.
    images_ahead = max(options.workers, size * max(options.prefetch, 1))
    reading = grain.ReadOptions(
        num_threads=options.workers,
        prefetch_buffer_size=images_ahead if options.workers else 0,
    )
    dataset = grain.MapDataset.source(source).to_iter_dataset(reading)
    return iter(dataset.batch(size, drop_remainder=True))
