"""Data sets that are streamed: which ones, and how they are opened."""

from pathlib import Path

import numpy as np

from darts_jax.data import prepared, records
from darts_jax.data.arrays import Arrays, measure
from darts_jax.data.images import size_of
from darts_jax.data.source import ImageFiles, Request, Source
from darts_jax.data.streaming import MODES, StreamedImages, Streaming, stream_batches
from darts_jax.errors import UserError, unknown

MEASURED = 1024  # training images that mean and deviation are measured on


def is_streamed(source: Source, request: Request, options: Streaming) -> bool:
    """Whether `source` is to be streamed: `options.mode`, by its decoded size where "auto".

    A set that is not prepared yet is prepared to know its size. Raises `UserError` for an
    unknown mode, for "never" where nothing else is possible, and as preparing does.
    """
    if options.mode not in MODES:
        raise unknown("config.dataset.streaming", options.mode, MODES)
    if source.prepared is not None and options.mode == "never":
        source.open()  # says that this set can only be streamed
    if options.mode != "auto" or source.prepared is not None:
        return options.mode != "never"
    if source.files is not None:
        files = source.files
        height = width = request.image_size
        if not request.image_size:  # the first one's size is a guess where sizes differ
            height, width = size_of(files.root / files.train[0])
        needed = 3 * height * width * (len(files.train) + len(files.test))
    else:
        directory = prepared.directory_of(source, request.data_dir)
        try:
            needed = records.describe(directory).decoded_bytes(0)
        except UserError:
            return False  # damaged: reading it says so
    return needed > options.resident_gib * 2**30


def open_streamed(
    source: Source,
    request: Request,
    options: Streaming,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Arrays:
    """Returns the set with its labels in memory and its images as `StreamedImages`.

    mean_std: a channel; None: the source's, or else measured on the first MEASURED training
    images, centre cropped. Raises `UserError` when the set cannot be opened, or its images
    have several sizes and `request.image_size` is unset.
    """
    if source.files is not None:
        found = _from_files(source.files, request.image_size, options)
    else:
        directory = source.prepared or prepared.directory_of(source, request.data_dir)
        # A set of our own was stored at the size that was asked for.
        size = request.image_size if source.prepared else 0
        found = _from_records(directory, size, request.data_dir, options)
    mean, std = mean_std or source.mean_std or _measure(found)
    return found._replace(mean=mean, std=std)


def _from_files(files: ImageFiles, image_size: int, options: Streaming) -> Arrays:
    if not image_size:
        raise _no_size(files.root)

    def images(names: tuple[str, ...]) -> StreamedImages:
        def open_image(index: int) -> tuple[Path, str]:
            path = files.root / names[index]
            return path, str(path)

        shape = (len(names), image_size, image_size, 3)
        return StreamedImages(open_image, shape, options)

    return Arrays(
        train_images=images(files.train),
        train_labels=files.train_labels,
        test_images=images(files.test),
        test_labels=files.test_labels,
        class_names=files.class_names,
        mean=(),
        std=(),
    )


def _from_records(
    directory: Path, image_size: int, data_dir: Path, options: Streaming
) -> Arrays:
    from darts_jax.data import builder  # imports tensorflow_datasets

    about = records.describe(directory)
    names = builder.class_names(directory)
    height, width, channels = about.shape
    if image_size:
        height = width = image_size
    if not height or not width:
        raise _no_size(directory)
    splits = []
    for split in ("train", about.test_split):
        source = records.Records(directory, split)
        order, labels = records.index(source, directory, split, data_dir)
        if labels.min() < 0 or labels.max() >= len(names):
            raise UserError(
                f"{split} labels of {directory} reach outside 0..{len(names) - 1}"
            )
        shape = (len(source), height, width, channels)
        splits.append((StreamedImages(source, shape, options, order), labels))
    (train, train_labels), (test, test_labels) = splits
    return Arrays(train, train_labels, test, test_labels, names, (), ())


def _no_size(place: Path) -> UserError:
    return UserError(
        f"the images in {place} are streamed and may differ in size: pass the pixels a "
        "side, --config.dataset.image_size=N"
    )


def _measure(found: Arrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures mean and deviation a channel on the first MEASURED training images."""
    some = found.train_images[:MEASURED]
    assert isinstance(some, StreamedImages)
    rows = np.arange(len(some))[:, None]
    batches = stream_batches(some, found.train_labels, rows, put=lambda batch: batch)
    return measure(np.concatenate([images for images, _ in batches]))
