"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the authors' binary archives.

Name, version and features are those of tensorflow-datasets' own `cifar10` and `cifar100`,
so each can read what the other prepared as array_record. Its own builders need TensorFlow.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from darts_jax.data.download import Archive, find_archive
from darts_jax.data.source import Contents, Example, Request, Source, refuse_options
from darts_jax.errors import UserError

SHAPE = (32, 32, 3)
PIXELS = 32 * 32 * 3


class Cifar(NamedTuple):
    """Where things lie in one of the two archives."""

    archive: Archive
    prefix: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    names_file: str
    num_classes: int
    extra_labels: dict[str, int]  # label bytes of a record before the last one


CIFAR10 = Cifar(
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170052171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    prefix="cifar-10-batches-bin/",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_files=("test_batch.bin",),
    names_file="batches.meta.txt",
    num_classes=10,
    extra_labels={},
)
CIFAR100 = Cifar(
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168513733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    prefix="cifar-100-binary/",
    train_files=("train.bin",),
    test_files=("test.bin",),
    names_file="fine_label_names.txt",
    num_classes=100,
    extra_labels={"coarse_label": 20},
)

# The reference's constants (quark0/darts, cnn/utils.py), so that inputs are equal to the bit.
CIFAR10_MEAN_STD = (
    (0.49139968, 0.48215827, 0.44653124),
    (0.24703233, 0.24348505, 0.26158768),
)


def cifar10(request: Request) -> Source:
    """Returns the source of `cifar10`; `path` may name a directory with the archive."""
    return _source("cifar10", CIFAR10, request)._replace(mean_std=CIFAR10_MEAN_STD)


def cifar100(request: Request) -> Source:
    """Returns the source of `cifar100` (labels: the 100 fine classes)."""
    return _source("cifar100", CIFAR100, request)


def _source(name: str, cifar: Cifar, request: Request) -> Source:
    refuse_options(request, "image_size", "seed", "num_classes", "num_examples")
    return Source(
        name=name,
        version="3.0.2",
        description="60,000 colour images of 32x32 pixels, 10,000 of them for testing.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        extra_labels=cifar.extra_labels,
        open=lambda: _open(
            cifar, find_archive(cifar.archive, request.path, request.data_dir)
        ),
    )


def _open(cifar: Cifar, path: Path) -> Contents:
    """Reads the archive's files into memory (184 MB); nothing is extracted to disk."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            train, test = (
                [(name, _read(tar, cifar.prefix + name)) for name in files]
                for files in (cifar.train_files, cifar.test_files)
            )
            text = _read(tar, cifar.prefix + cifar.names_file).decode()
    except KeyError as error:
        raise UserError(f"{path} is not the archive: {error.args[0]}") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"cannot read {path} (truncated or damaged: {error}): delete it and get it again"
        ) from error
    class_names = tuple(name for name in text.split("\n") if name)
    if len(class_names) != cifar.num_classes:
        raise UserError(
            f"{path}: {cifar.names_file} names {len(class_names)} classes, "
            f"expected {cifar.num_classes}"
        )
    train_records, test_records = (
        np.concatenate([_records(cifar, path, name, data) for name, data in files])
        for files in (train, test)
    )
    return Contents(
        shape=SHAPE,
        class_names=class_names,
        num_train=len(train_records),
        num_test=len(test_records),
        train=_examples(cifar, train_records),
        test=_examples(cifar, test_records),
    )


def _read(tar: tarfile.TarFile, member: str) -> bytes:
    """Returns the bytes of a regular file of the archive, found by its exact name."""
    info = tar.getmember(member)
    file = tar.extractfile(info) if info.isreg() else None
    if file is None:
        raise KeyError(f"{member} is not a regular file")
    with file:
        return file.read()


def _records(cifar: Cifar, path: Path, name: str, data: bytes) -> np.ndarray:
    """Returns uint8 `[N, label bytes + PIXELS]`; raises `UserError` on a bad file."""
    label_bytes = len(cifar.extra_labels) + 1
    width = label_bytes + PIXELS
    if not data or len(data) % width:
        raise UserError(
            f"{path}: {name} has {len(data):,} bytes, not a multiple of {width:,}: "
            "the archive is damaged, get it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, width)
    limits = [*cifar.extra_labels.values(), cifar.num_classes]
    bad = np.argwhere(records[:, :label_bytes] >= np.array(limits))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{path}: label {records[row, column]} of image {row} in {name} is out of "
            f"range 0..{limits[column] - 1}: the archive is damaged, get it again"
        )
    return records


def _examples(cifar: Cifar, records: np.ndarray) -> Iterator[Example]:
    label_bytes = len(cifar.extra_labels) + 1
    for record in records:
        extra = {
            name: int(v) for name, v in zip(cifar.extra_labels, record, strict=False)
        }
        image = record[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)
        yield Example(image, int(record[label_bytes - 1]), extra)
