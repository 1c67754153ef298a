"""Reading image files of any size and mode as arrays of one size."""

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from darts_jax.data.resized_crop import ATTEMPTS, RATIO, SCALE
from darts_jax.errors import UserError

MODES = {1: "L", 3: "RGB"}  # Pillow's name of an image of so many channels


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Opens an image; whatever Pillow dislikes becomes a `UserError` naming the file."""
    try:
        with Image.open(file) as image:
            yield image
    except (
        *(OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError),
        Image.DecompressionBombError,
    ) as error:
        # UnidentifiedImageError and "image file is truncated" are OSErrors; a broken PNG
        # chunk is a SyntaxError, a broken TIFF may be anything.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"cannot read image {name} ({reason}): repair or remove it"
        ) from error


def size_of(path: Path) -> tuple[int, int]:
    """Returns (H, W) of an image file from its header; raises `UserError` naming it."""
    with _opened(path, str(path)) as image:
        return image.height, image.width


def common_size(
    root: Path, names: list[str], advance: Callable[[int], None]
) -> tuple[int, int] | None:
    """Returns (H, W) when all images have it, else None; reads headers only."""
    first = None
    for name in names:
        size = size_of(root / name)
        first = first or size
        if first != size:
            return None
        advance(1)
    return first


def decode(
    file: Path | BinaryIO,
    size: tuple[int, int],
    *,
    name: str = "",
    channels: int = 3,
    keep: float = 1.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Returns the image as uint8 `[H, W, channels]`: resized to cover `size`, centre cropped.

    Grey is repeated, transparency dropped, a palette resolved, CMYK converted, 16-bit grey
    scaled to 8 bits. Bilinear with antialiasing, as torchvision's Resize. keep: the share of
    each side that the crop keeps (ImageNet's tests: 224 of 256). With `rng` the crop is
    torchvision's RandomResizedCrop of the whole image instead. Raises `UserError` that gives
    `name`, or else the path, when the image cannot be read, or its values have no known scale.
    """
    with _opened(file, name or str(file)) as image:
        if image.mode == "F":
            raise ValueError("its values are real numbers of no known scale")
        if image.mode.startswith("I;16") or image.mode == "I":
            # convert("RGB") would clip to 255 instead of scaling.
            values = np.asarray(image)
            if image.mode == "I" and not _is_16_bit(values):
                raise ValueError("its 32-bit values are not those of a 16-bit image")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        image = image.convert(MODES[channels])
        if rng is not None:
            # Cropped first: a resize of a box would let its neighbours' pixels in.
            image = image.crop(random_box(rng, image.height, image.width))
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        else:
            image = _centre(image, size, keep)
        pixels = np.asarray(image)
        return pixels if channels > 1 else pixels[..., None]


def _is_16_bit(values: np.ndarray) -> bool:
    """Whether whole numbers are a 16-bit image's: up to 65535, and not all of 8 bits."""
    return bool(values.min() >= 0) and (
        256 <= int(values.max()) <= 65535 or not values.any()
    )


def _centre(image: Image.Image, size: tuple[int, int], keep: float) -> Image.Image:
    height, width = size
    scale = max(height / image.height, width / image.width) / keep
    if scale != 1:
        covering = (
            max(width, round(image.width * scale)),
            max(height, round(image.height * scale)),
        )
        image = image.resize(covering, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_box(
    rng: np.random.Generator, height: int, width: int
) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a box as torchvision's RandomResizedCrop does.

    The same law as `resized_crop.random_resized_crop` on the device: a share of the area in
    SCALE, a width : height in RATIO, uniform in the logarithm; after ATTEMPTS boxes that do
    not fit, the largest central one with a ratio in the range.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(low, high))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= columns <= width and 1 <= rows <= height:
            left = int(rng.integers(width - columns + 1))
            top = int(rng.integers(height - rows + 1))
            return left, top, left + columns, top + rows
    columns = min(width, round(height * RATIO[1]))
    rows = min(height, round(width / RATIO[0]))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows
