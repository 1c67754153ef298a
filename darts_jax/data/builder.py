"""The tensorflow-datasets side: a builder that stores any `Source`, and its reader.

What keeps it free of TensorFlow: array_record files, images handed over as encoded PNG, and
`as_data_source` (not `as_dataset`) for reading. PNG for every set, also for folders of JPEG
files: it stores exactly the pixels that will be trained on, whatever the decoder at hand.
This is the only module that imports tensorflow_datasets; `load_dataset` imports it only when
there are no decoded arrays yet.
"""

import contextlib
import io
import json
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from darts_jax.data.progress import progress
from darts_jax.data.source import Contents, Example, Source
from darts_jax.errors import UserError

READ_CHUNK = 512


class SourceBuilder(  # type: ignore[call-arg]  # tensorflow-datasets is untyped
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Stores the examples of an opened `Source` in its canonical order."""

    VERSION = tfds.core.Version("0.0.0")  # replaced by `prepare`
    source: Source
    contents: Contents
    advance: Callable[[int], None]

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self.contents.shape),
            "label": tfds.features.ClassLabel(names=list(self.contents.class_names)),
        }
        for name, num_classes in self.source.extra_labels.items():
            features[name] = tfds.features.ClassLabel(num_classes=num_classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.source.description,
            homepage=self.source.homepage or None,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # records lie in the canonical order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # sources find their own files
        return {
            "train": self._generate_examples("train", self.contents.train),
            "test": self._generate_examples("test", self.contents.test),
        }

    def _generate_examples(
        self, split: str, examples: Iterator[Example]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, example in enumerate(examples):
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": _png(example.image),
                    "label": example.label,
                    **example.extra_labels,
                },
            )
            self.advance(1)


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8 `[H, W, C]`; the fastest compression level, the pixels are the same."""
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets' notices, warnings and bars off the user's terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def prepare(source: Source, contents: Contents, data_dir: Path) -> None:
    """Writes `<data_dir>/<name>[/<config>]/<version>` as array_record files.

    The directory appears only when it is complete: it is written under another name and
    renamed. Exceptions of the source pass through.
    """
    total = contents.num_train + contents.num_test
    with progress(f"preparing {source.name}, {total:,} images", total) as advance:
        # A subclass a source: tensorflow-datasets keeps name and version in the class.
        attributes = {
            "name": source.name,
            "VERSION": tfds.core.Version(source.version),
            "source": source,
            "contents": contents,
            "advance": staticmethod(advance),
        }
        builder_class = types.new_class(
            source.name,
            (SourceBuilder,),
            {"skip_registration": True},
            lambda namespace: namespace.update(attributes),
        )
        config = tfds.core.BuilderConfig(name=source.config) if source.config else None
        with _quiet():
            builder = builder_class(
                data_dir=data_dir, config=config, file_format="array_record"
            )
            builder.download_and_prepare(download_dir=data_dir / "downloads")


def class_names(directory: Path) -> tuple[str, ...]:
    """Returns the class names of a prepared set; raises `UserError` on a foreign format."""
    info = json.loads((directory / "dataset_info.json").read_text())
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{directory} is stored as {file_format}, which needs TensorFlow: pass another "
            "--config.dataset.data_dir=DIR"
        )
    with _quiet():
        names = tfds.builder_from_directory(directory).info.features["label"].names
    return tuple(names)


def encoded_records(directory: Path, split: str) -> Any:
    """Returns the records of a split by index, {"image": encoded bytes, "label": int, ...}."""
    with _quiet():
        builder = tfds.builder_from_directory(directory)
        skip = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=skip)


def read_split(
    directory: Path,
    split: str,
    allocate: Callable[[tuple[int, ...]], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split of a prepared set in canonical order.

    `allocate(shape)` makes the array for the images, in memory or on disk. Returns images
    uint8 `[N, H, W, C]` and labels int32 `[N]`.
    """
    with _quiet():
        records = tfds.builder_from_directory(directory).as_data_source(split)
        num = len(records)
        labels = np.zeros(num, np.int32)
        seen = np.zeros(num, bool)
        images = None
        with progress(f"decoding {num:,} {split} images", num) as advance:
            for start in range(0, num, READ_CHUNK):
                chunk = range(start, min(start + READ_CHUNK, num))
                for record in records.__getitems__(list(chunk)):
                    if images is None:
                        images = allocate((num, *record["image"].shape))
                    # Sets prepared by others lie in hash order; the id tells the place.
                    index = int(record["id"].rsplit(b"_", 1)[-1])
                    images[index] = record["image"]
                    labels[index] = record["label"]
                    seen[index] = True
                advance(len(chunk))
    if images is None or not seen.all():
        raise ValueError(
            f"{split}: {num - int(seen.sum())} of {num} images are missing"
        )
    return images, labels
