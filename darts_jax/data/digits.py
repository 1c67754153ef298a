"""The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, one channel."""

from collections.abc import Iterator

import numpy as np

from darts_jax.data.source import Contents, Example, Request, Source, refuse_options


def digits(request: Request) -> Source:
    """Returns the source of `digits`: 1,347 training and 450 test images `[8, 8, 1]`.

    Raises `UserError` when an option is set that this data set does not have.
    """
    refuse_options(request, "path", "image_size", "seed", "num_classes", "num_examples")
    return Source(
        name="digits",
        version="1.0.0",
        description="Handwritten digits of 8x8 pixels (UCI ML, by way of scikit-learn).",
        homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        open=_open,
    )


def _open() -> Contents:
    from sklearn.datasets import load_digits  # a second to import

    data = load_digits()
    labels = data.target.astype(np.int64)
    # 0..16 to 0..255, rounded half up.
    images = np.floor(data.images * (255 / 16) + 0.5).astype(np.uint8)[..., None]
    # Stratified without a random generator: walk through the images class by class and
    # give every fourth to the test split. Both splits keep the order of the file.
    by_class = np.argsort(labels, kind="stable")
    in_test = np.zeros(len(labels), bool)
    in_test[by_class[::4]] = True

    def examples(indices: np.ndarray) -> Iterator[Example]:
        return (Example(images[i], int(labels[i])) for i in indices)

    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    return Contents(
        shape=(8, 8, 1),
        class_names=tuple(str(name) for name in data.target_names),
        num_train=len(train),
        num_test=len(test),
        train=examples(train),
        test=examples(test),
    )
