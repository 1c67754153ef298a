"""Prepared array_record directories as they lie on disk: found, described, labelled.

What needs tensorflow_datasets goes through data/builder.py, imported when records are read;
the description is read from the JSON files, so that the choice between streaming and memory
costs no import.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from darts_jax.data import arrays
from darts_jax.data.images import MODES
from darts_jax.data.progress import progress
from darts_jax.errors import UserError

INFO = "dataset_info.json"
TEST_SPLITS = ("validation", "test")  # ImageNet's own test split has no labels
CHUNK = 4096  # records a step of the label scan


class Description(NamedTuple):
    """What the JSON files of a prepared set say.

    shape: (H, W, C) of the images, 0 where it varies. counts: images a split.
    """

    shape: tuple[int, int, int]
    counts: dict[str, int]

    @property
    def test_split(self) -> str:
        """The split that is used for tests."""
        return next(name for name in TEST_SPLITS if name in self.counts)

    def decoded_bytes(self, image_size: int) -> int:
        """The size of training and test images, brought to `image_size` where it is set."""
        height, width, channels = self.shape
        pixels = image_size**2 if image_size else height * width
        return pixels * channels * (self.counts["train"] + self.counts[self.test_split])


def find_prepared(root: Path) -> Path | None:
    """Returns `root` or its newest version folder, whichever holds a prepared set."""
    if (root / INFO).is_file():
        return root
    versions = [place.parent for place in root.glob(f"[0-9]*.[0-9]*.[0-9]*/{INFO}")]
    numbers = {place: place.name.split(".") for place in versions}
    plain = [p for p, words in numbers.items() if all(w.isdecimal() for w in words)]
    return max(plain, key=lambda p: [int(w) for w in numbers[p]], default=None)


def describe(directory: Path) -> Description:
    """Reads the description of a prepared set.

    Raises `UserError` when it is not one of images with labels, in a training and a test
    split, or not readable.
    """
    try:
        info = json.loads((directory / INFO).read_text())
        features = json.loads((directory / "features.json").read_text())
        features = features["featuresDict"]["features"]
        counts = {
            split["name"]: sum(map(int, split["shardLengths"]))
            for split in info["splits"]
        }
        if "classLabel" not in features["label"]:
            raise KeyError("label")
        sizes = features["image"]["image"]["shape"]["dimensions"]
        height, width, channels = (max(0, int(size)) for size in sizes)
        if channels not in (0, *MODES):
            raise ValueError(f"images of {channels} channels")
        if not counts["train"] or not any(counts.get(name) for name in TEST_SPLITS):
            raise KeyError("train")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} is no prepared set of images with labels and the splits train "
            f"and {' or '.join(TEST_SPLITS)} ({type(error).__name__}: {error})"
        ) from error
    return Description((height, width, channels or 3), counts)


class Records:
    """The encoded images of a split by index; safe to read from several threads."""

    def __init__(self, directory: Path, split: str) -> None:
        from darts_jax.data import builder  # imports tensorflow_datasets

        self._name = f"of {split} in {directory}"
        self._records = builder.encoded_records(directory, split)
        # Opens the files once, before any thread does.
        self._guarded("the first record", partial(self._records.__getitem__, 0))

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, index: int) -> tuple[io.BytesIO, str]:
        """Returns the encoded bytes and what to call the record in an error."""
        read = partial(self._records.__getitem__, index)
        record = self._guarded(f"image {index}", read)
        return io.BytesIO(record["image"]), f"{index} {self._name}"

    def index(self) -> np.ndarray:
        """Returns int32 `[2, N]`: the records in canonical order, and their labels.

        Sets that tensorflow-datasets makes itself lie in hash order, and the end of the id
        tells the place; those without numbered ids are taken as they lie. Reads every record,
        without decoding the images.
        """
        number = len(self)
        found, places = np.empty(number, np.int32), np.empty(number, np.int64)
        with progress(f"reading the labels {self._name}", number) as advance:
            for start in range(0, number, CHUNK):
                chunk = range(start, min(start + CHUNK, number))
                records: list[Any] = self._guarded(
                    f"records {start} to {chunk.stop - 1}",
                    partial(self._records.__getitems__, list(chunk)),
                )
                found[start : chunk.stop] = [record["label"] for record in records]
                places[start : chunk.stop] = [_place(record) for record in records]
                advance(len(chunk))
        order = np.argsort(places, kind="stable")
        if not np.array_equal(places[order], np.arange(number)):
            order = np.arange(number)
        return np.stack([order, found[order]]).astype(np.int32)

    def _guarded(self, what: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot read {what} {self._name} ({reason}): prepare the set again"
            ) from error


def _place(record: Any) -> int:
    """Returns the number at the end of a record's id, -1 where there is none."""
    end = record.get("id", b"").rsplit(b"_", 1)[-1]
    return int(end) if end.isdigit() and len(end) < 19 else -1


def index(records: Records, directory: Path, split: str, data_dir: Path) -> np.ndarray:
    """Returns `records.index()`, kept in `data_dir` after the first time.

    The file's name holds a digest of the set's description and its files' sizes.
    """
    place = data_dir / "labels" / f"{arrays.key(directory)}-{split}.npy"
    with contextlib.suppress(OSError, ValueError):
        known = np.load(place, allow_pickle=False)
        if known.dtype == np.int32 and known.shape == (2, len(records)):
            return known
    found = records.index()
    with contextlib.suppress(OSError):  # read again next time, then
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(f".{os.getpid()}")
        with temporary.open("wb") as file:
            np.save(file, found)
        temporary.replace(place)
    return found
