"""A directory of image files, one folder a class, converted once or streamed.

    ROOT/<class>/*                        a fifth of every class becomes the test split
    ROOT/train/<class>/*, ROOT/test/<class>/*         (or val, valid, validation for test)
    ROOT/dataset_info.json, *.array_record*           a prepared set, only for streaming

Canonical order: a fixed pseudo-random interleave of the classes. Within a class images are
ranked by the SHA-256 of their path relative to ROOT; image r of the n of a class stands at
(r + u) / n, u in [0, 1) from the same hash. So every prefix of a split, which is what `split`
and `limit` cut off, holds each class in proportion, whatever the file names are.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from darts_jax.data.images import common_size, decode
from darts_jax.data.progress import progress, say
from darts_jax.data.records import find_prepared
from darts_jax.data.source import (
    Contents,
    Example,
    ImageFiles,
    Request,
    Source,
    refuse_options,
)
from darts_jax.errors import UserError

VERSION = "1.0.0"  # raise it when the conversion changes
TEST_NAMES = ("test", "val", "valid", "validation")  # the first one found is used
SPLIT_NAMES = ("train", "training", "testing", *TEST_NAMES)  # in any case of letters
TEST_STRIDE = 5  # without a test folder, one image in five
MIXED_SIZE = 32  # pixels a side when the images are of several sizes
EXTENSIONS = {"bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"}
CHUNK = 256  # images decoded ahead


class _File(NamedTuple):
    name: str  # relative to ROOT, with "/"
    label: int
    size: int  # bytes
    modified: int  # ns


def folder(request: Request) -> Source:
    """Returns the source of `folder`: RGB images of the class folders in `request.path`.

    The images get `image_size` pixels a side: shorter side resized, centre cropped. Unset,
    it is the common size of all images if they agree, else 32. The prepared set belongs to
    the listing: absolute path, and name, size and time of every file.

    A directory that tensorflow-datasets has prepared, or one that holds its versions, is
    left as it is; it can only be streamed.

    Raises `UserError` when the folder is missing, not a folder, unreadable, has fewer than two
    classes, a class without images, or a test class that is not a training class.
    """
    refuse_options(request, "seed", "num_classes", "num_examples")
    if not request.path:
        raise UserError(
            "data set 'folder' needs the folder of images: pass --config.dataset.path=DIR"
        )
    root = Path(request.path).expanduser().absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"dataset.path={request.path} {what}")
    prepared = find_prepared(root)
    if prepared is not None:
        return Source("folder", VERSION, "", _only_streamed, prepared=prepared)
    try:
        class_names, train, test = _scan(root)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    # Bytes that are not UTF-8 are legal in a path, but not in a description.
    shown = os.fsencode(root).decode(errors="replace")
    listing = hashlib.sha256(repr((str(root), request.image_size)).encode())
    for file in (*train, *test):
        listing.update(repr(file).encode())
    return Source(
        name="folder",
        config="k" + listing.hexdigest()[:16],
        version=VERSION,
        description=f"The images in {shown}.",
        open=lambda: _open(root, class_names, train, test, request.image_size),
        files=ImageFiles(
            root=root,
            class_names=class_names,
            train=tuple(file.name for file in train),
            train_labels=np.array([file.label for file in train], np.int32),
            test=tuple(file.name for file in test),
            test_labels=np.array([file.label for file in test], np.int32),
        ),
    )


def _only_streamed() -> Contents:
    raise UserError(
        "dataset.path is a prepared data set, which can only be streamed: pass "
        "--config.dataset.streaming=always or auto"
    )


def _scan(root: Path) -> tuple[tuple[str, ...], list[_File], list[_File]]:
    """Returns the class names, sorted, and both splits in canonical order.

    A split is a folder that holds folders: a class may be called "train", and a test set
    without labels is none.
    """
    found = [name for name in TEST_NAMES if (root / name).is_dir()]
    tests = [name for name in found if _is_split(root / name)]
    if _is_split(root / "train"):
        for name in found:
            if name not in tests:
                say(f"{root / name} holds no class folders: it is not used")
        class_names = _classes(root / "train")
        train = _interleave(_files(root, root / "train", class_names))
        if not tests:
            return class_names, *_hold_out(class_names, train)
        if len(tests) > 1:
            say(f"{root}: test images come from {tests[0]}; not used: {tests[1:]}")
        known = _classes(root / tests[0])
        for name in known:
            if name not in class_names:
                raise UserError(
                    f"class {name!r} is in {root / tests[0]} but not in {root / 'train'}"
                )
        test = _files(root, root / tests[0], class_names, required=known)
        return class_names, train, _interleave(test)
    if tests:
        raise UserError(f"{root} has {tests[0]} but no train folder: add {root}/train")
    class_names = _classes(root)
    for name in class_names:
        if name.casefold() in SPLIT_NAMES and _folders(root / name):
            raise UserError(
                f"{root / name} holds folders and looks like a split, not a class: rename "
                f"it to train or {TEST_NAMES[0]}"
            )
    files = _interleave(_files(root, root, class_names))
    return class_names, *_hold_out(class_names, files)


def _is_split(place: Path) -> bool:
    return place.is_dir() and bool(_folders(place))


def _folders(parent: Path) -> list[str]:
    with os.scandir(parent) as entries:
        return sorted(
            e.name for e in entries if e.is_dir() and not e.name.startswith(".")
        )


def _classes(parent: Path) -> tuple[str, ...]:
    """Returns the names of the class folders; raises `UserError` when there are < 2."""
    names = _folders(parent)
    if len(names) < 2:
        raise UserError(
            f"{parent} holds {len(names)} class folders {names}: at least 2 are needed, "
            "each with the images of one class"
        )
    for name in names:
        # Prepared sets list one name a line, in UTF-8; bytes that are not are surrogates.
        text = name.encode(errors="ignore").decode()
        if text != name or text.splitlines() != [name] or not text.strip():
            raise UserError(f"rename the class folder {name!r} in {parent}")
    return tuple(names)


def _files(
    root: Path,
    parent: Path,
    class_names: tuple[str, ...],
    required: tuple[str, ...] | None = None,
) -> list[_File]:
    """Lists the images of every class, subfolders included; a required class has some."""
    files = []
    for label, class_name in enumerate(class_names):
        if required is not None and class_name not in required:
            continue
        found = sorted(_walk(root, parent / class_name, label))
        if not found:
            raise UserError(
                f"class folder {parent / class_name} holds no images "
                f"(.{', .'.join(sorted(EXTENSIONS))}): fill it or remove it"
            )
        files += found
    return files


def _walk(root: Path, folder: Path, label: int) -> Iterator[_File]:
    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=fail):
        prefix = os.path.relpath(place, root)
        for name in names:
            extension = name.rsplit(".", 1)[-1].lower()
            if name.startswith(".") or extension not in EXTENSIONS:
                continue
            # Strings, not Path objects: 60,000 files are listed at every start.
            path = os.path.join(place, name)
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(
                    f"{path} is no file: an image or a link to one is needed"
                )
            relative = f"{prefix}/{name}"
            yield _File(relative, label, status.st_size, status.st_mtime_ns)


def _interleave(files: list[_File]) -> list[_File]:
    """Returns the canonical order of the module's docstring."""
    classes: dict[int, list[tuple[bytes, _File]]] = {}
    for file in files:
        digest = hashlib.sha256(os.fsencode(file.name)).digest()
        classes.setdefault(file.label, []).append((digest, file))
    placed = []
    for members in classes.values():
        for rank, (digest, file) in enumerate(sorted(members)):
            u = int.from_bytes(digest[-6:], "big") / 2**48
            placed.append(((rank + u) / len(members), digest, file))
    return [file for _, _, file in sorted(placed)]


def _hold_out(
    class_names: tuple[str, ...], files: list[_File]
) -> tuple[list[_File], list[_File]]:
    """Splits off every fifth image of every class, at least one, as the test split."""
    train: list[_File] = []
    test: list[_File] = []
    seen = [0] * len(class_names)
    for file in files:
        # The second of five: a class of two images still has one on either side.
        (test if seen[file.label] % TEST_STRIDE == 1 else train).append(file)
        seen[file.label] += 1
    for class_name, count in zip(class_names, seen, strict=True):
        if count < 2:
            raise UserError(
                f"class {class_name!r} has 1 image: at least 2 are needed where there is "
                "no test folder"
            )
    return train, test


def _open(
    root: Path,
    class_names: tuple[str, ...],
    train: list[_File],
    test: list[_File],
    image_size: int,
) -> Contents:
    """Looks at the size of every image when `image_size` is unset, then streams them."""
    size = (image_size, image_size)
    if not image_size:
        names = [file.name for file in (*train, *test)]
        with progress(f"looking at {len(names):,} images", len(names)) as advance:
            size = common_size(root, names, advance) or (MIXED_SIZE, MIXED_SIZE)
    return Contents(
        shape=(*size, 3),
        class_names=class_names,
        num_train=len(train),
        num_test=len(test),
        train=_examples(root, train, size),
        test=_examples(root, test, size),
    )


def _examples(
    root: Path, files: list[_File], size: tuple[int, int]
) -> Iterator[Example]:
    """Yields the decoded images in order; Pillow decodes in threads without the GIL."""

    def load(file: _File) -> np.ndarray:
        return decode(root / file.name, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            for file, image in zip(chunk, pool.map(load, chunk), strict=True):
                yield Example(image, file.label)
