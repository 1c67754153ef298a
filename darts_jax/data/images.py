"""Reading image files of any size and mode as RGB arrays of one size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from darts_jax.errors import UserError


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image; whatever Pillow dislikes becomes a `UserError` naming the file."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # UnidentifiedImageError and "image file is truncated" are OSErrors; a broken PNG
        # chunk is a SyntaxError.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"cannot read image {path} ({reason}): repair or remove it"
        ) from error


def common_size(
    root: Path, names: list[str], advance: Callable[[int], None]
) -> tuple[int, int] | None:
    """Returns (H, W) when all images have it, else None; reads headers only."""
    first = None
    for name in names:
        with _opened(root / name) as image:
            width, height = image.size
        first = first or (height, width)
        if first != (height, width):
            return None
        advance(1)
    return first


def decode(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the image as uint8 `[H, W, 3]`: RGB, resized to cover `size`, centre cropped.

    Grey is repeated, transparency dropped, a palette resolved, CMYK converted, 16-bit grey
    scaled to 8 bits. Bilinear with antialiasing, as torchvision's Resize. Raises `UserError`
    that names the file when it cannot be read.
    """
    with _opened(path) as image:
        if image.mode.startswith("I;16") or image.mode == "I":
            # convert("RGB") would clip to 255 instead of scaling.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
        height, width = size
        scale = max(height / image.height, width / image.width)
        if scale != 1:
            covering = (
                max(width, round(image.width * scale)),
                max(height, round(image.height * scale)),
            )
            image = image.resize(covering, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return np.asarray(image.crop((left, top, left + width, top + height)))
