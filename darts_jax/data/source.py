"""What a data set has to say about itself before tensorflow-datasets may store it.

One file of this folder describes one data set: a function `Request -> Source`. A `Source` is
cheap to make (it reads at most a directory listing) and names the place where the prepared set
is kept; only `Source.open()` touches the images, and only when nothing is prepared yet.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from darts_jax.errors import UserError


class Request(NamedTuple):
    """The arguments of `load_dataset` that decide which files are prepared."""

    name: str  # a name in DATASETS
    data_dir: Path  # where prepared sets are kept
    path: str = ""  # folder of images, or the directory that holds an archive
    image_size: int = 0  # pixels a side; 0: as stored
    seed: int = 0  # synthetic only, as the two below
    num_classes: int = 0
    num_examples: int = 0


class Example(NamedTuple):
    """One image, uint8 `[H, W, C]`, its label, and labels that are stored but not loaded."""

    image: np.ndarray
    label: int
    extra_labels: dict[str, int] = {}  # noqa: RUF012 (never written to)


class Contents(NamedTuple):
    """An opened source; both iterators run once, in the canonical order of their split."""

    shape: tuple[int, int, int]  # H, W, C
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    train: Iterator[Example]
    test: Iterator[Example]


class ImageFiles(NamedTuple):
    """The files of both splits in canonical order, so that they can be streamed."""

    root: Path
    class_names: tuple[str, ...]
    train: tuple[str, ...]  # names relative to root
    train_labels: np.ndarray  # int32 [N]
    test: tuple[str, ...]
    test_labels: np.ndarray


class Source(NamedTuple):
    """A data set as a tensorflow-datasets builder needs it.

    The prepared set lies in `<data_dir>/<name>[/<config>]/<version>`: whatever changes the
    stored images must change `config` or `version`. Streamed, a set with `files` is read
    from these; one with `prepared`, a directory that others made, can only be streamed.
    """

    name: str
    version: str
    description: str
    open: Callable[[], Contents]
    config: str = ""
    homepage: str = ""
    extra_labels: dict[str, int] = {}  # noqa: RUF012 {name: number of classes}
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = (
        None  # None: measured
    )
    files: ImageFiles | None = None
    prepared: Path | None = None


def refuse_options(request: Request, *options: str) -> None:
    """Raises `UserError` when one of the named options of `request` is set.

    A data set that ignored, say, `path` would train on other images than the user believes.
    """
    for option in options:
        value = getattr(request, option)
        if value:
            raise UserError(
                f"data set {request.name!r} takes no {option}, got {value!r}: leave it unset"
            )
