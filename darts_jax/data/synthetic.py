"""Made-up images that a small network can learn: for tests, dry runs and benchmarks."""

from collections.abc import Iterator

import numpy as np

from darts_jax.data.source import Contents, Example, Request, Source, refuse_options
from darts_jax.errors import UserError

NUM_CLASSES = 10
NUM_EXAMPLES = 1024  # training images; a quarter as many test images
IMAGE_SIZE = 16
GRID = 4  # a class is a random GRID x GRID x 3 picture, enlarged


def synthetic(request: Request) -> Source:
    """Returns the source of `synthetic`: a coarse picture a class, shifted, plus noise.

    Every image is a function of (seed, split, index). Labels go round robin, so that any
    prefix of a split is balanced. Raises `UserError` on an impossible size.
    """
    refuse_options(request, "path")
    size = request.image_size or IMAGE_SIZE
    num_classes = request.num_classes or NUM_CLASSES
    num_examples = request.num_examples or NUM_EXAMPLES
    for option, value, least in (
        ("image_size", size, GRID),
        ("num_classes", num_classes, 2),
        ("num_examples", num_examples, num_classes),
        ("seed", request.seed, 0),
    ):
        if value < least:
            raise UserError(f"{option} of 'synthetic' must be >= {least}, got {value}")

    def contents() -> Contents:
        # Every class has test images even when there are few examples.
        num_test = max(num_examples // 4, num_classes)
        return Contents(
            shape=(size, size, 3),
            class_names=tuple(f"class_{i}" for i in range(num_classes)),
            num_train=num_examples,
            num_test=num_test,
            train=_examples(request.seed, 0, num_examples, size, num_classes),
            test=_examples(request.seed, 1, num_test, size, num_classes),
        )

    return Source(
        name="synthetic",
        config=f"s{size}c{num_classes}n{num_examples}r{request.seed}",
        version="1.0.0",
        description="One coarse random picture a class, shifted and noisy.",
        open=contents,
    )


def _examples(
    seed: int, split: int, count: int, size: int, num_classes: int
) -> Iterator[Example]:
    generator = np.random.default_rng([seed, 2])
    coarse = generator.uniform(32, 224, (num_classes, GRID, GRID, 3))
    pixel = np.arange(size) * GRID // size
    pictures = coarse[:, pixel][:, :, pixel]
    generator = np.random.default_rng([seed, split])
    for i in range(count):
        label = i % num_classes
        shift = tuple(generator.integers(-(size // 8), size // 8 + 1, 2))
        image = np.roll(pictures[label], shift, (0, 1))
        image = image + 32 * generator.standard_normal(image.shape)
        yield Example(np.clip(image, 0, 255).astype(np.uint8), label)
