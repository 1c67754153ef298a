"""Streams give the batches of data in memory, whatever the workers, processes and stops."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from darts_jax.data import (
    Dataset,
    Streaming,
    crop_key,
    epoch_batches,
    iid_batches,
    load_dataset,
    stream_batches,
)
from darts_jax.data.images import decode, random_box
from darts_jax.errors import UserError

KEY = jax.random.key(5)
SIZE, BATCH = 8, 6
Batches = list[tuple[np.ndarray, np.ndarray]]


def load(root: Path, *, mode: str = "always", **options: Any) -> Dataset:
    chosen = Streaming(mode, workers=options.pop("workers", 2), prefetch=2)
    return load_dataset(
        "folder", path=str(root), image_size=SIZE, streaming=chosen, **options
    )


@pytest.fixture
def streamed(odd_folder) -> Dataset:
    return load(odd_folder({"a": 13, "b": 9, "c": 11}))


def batches(dataset: Dataset, epoch: int = 0, **options: Any) -> Batches:
    rows = np.asarray(epoch_batches(KEY, epoch, len(dataset.train_labels), BATCH))
    return read(dataset, rows, **options)


def read(dataset: Dataset, rows: np.ndarray, **options: Any) -> Batches:
    stream = stream_batches(dataset.train_images, dataset.train_labels, rows, **options)
    return [(np.asarray(images), np.asarray(labels)) for images, labels in stream]


def assert_same(found: Batches, wanted: Batches) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one[0], other[0], strict=True)
        np.testing.assert_array_equal(one[1], other[1], strict=True)


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_a_stream_of_files_is_what_memory_holds(odd_folder, workers: int) -> None:
    root = odd_folder({"a": 13, "b": 9, "c": 11})
    resident, streamed = load(root, mode="never"), load(root, workers=workers)
    assert streamed.streamed and not resident.streamed
    assert streamed.train_images.shape == resident.train_images.shape
    assert streamed[5:] == resident[5:]  # names and statistics too
    for epoch in (0, 1):
        number = len(resident.train_labels)
        for rows in (
            epoch_batches(KEY, epoch, number, BATCH),
            iid_batches(KEY, epoch, number, BATCH, 7),
        ):
            rows = np.asarray(rows)
            wanted = [
                (resident.train_images[r], resident.train_labels[r]) for r in rows
            ]
            assert_same(read(streamed, rows), wanted)


def test_a_stream_of_records_is_what_memory_holds() -> None:
    resident = load_dataset("digits", limit=40)
    streamed = load_dataset("digits", limit=40, streaming=Streaming("always"))
    rows = np.asarray(epoch_batches(KEY, 3, 40, BATCH))
    wanted = [(resident.train_images[r], resident.train_labels[r]) for r in rows]
    assert_same(read(streamed, rows), wanted)
    assert streamed.test_images.shape == resident.test_images.shape
    np.testing.assert_array_equal(streamed.test_images.read(7), resident.test_images[7])


def test_a_view_of_a_view(streamed: Dataset) -> None:
    view = streamed.train_images[5:20][np.array([3, 1])]
    assert view.shape == (2, SIZE, SIZE, 3) and len(view) == 2
    np.testing.assert_array_equal(view.read(1), streamed.train_images.read(6))


def test_a_stream_begins_at_any_step(streamed: Dataset) -> None:
    """What a resumed run reads is what the whole run would have read, bit for bit."""
    for epoch in (0, 1):
        options = {"epoch": epoch, "crop_key": crop_key(KEY, 2, epoch)}
        whole = batches(streamed, **options)
        for first in range(len(whole)):
            assert_same(batches(streamed, first=first, **options), whole[first:])
        assert batches(streamed, first=len(whole), **options) == []


@pytest.mark.parametrize("count", [2, 3])
def test_processes_read_their_blocks_of_each_batch(odd_folder, count: int) -> None:
    dataset = load(odd_folder({"a": 13, "b": 9, "c": 11}))
    options = {"epoch": 1, "crop_key": crop_key(KEY, 2, 1), "first": 1}
    shares = [batches(dataset, process=(i, count), **options) for i in range(count)]
    together = [
        tuple(np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
        for blocks in zip(*shares, strict=True)
    ]
    assert_same(together, batches(dataset, **options))


def test_a_process_opens_only_its_share(
    streamed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def spy(file: Path, *args: Any, **options: Any) -> np.ndarray:
        opened.append(str(file))
        return decode(file, *args, **options)

    monkeypatch.setattr("darts_jax.data.streaming.decode", spy)
    seen = []
    for index in range(2):
        opened.clear()
        batches(streamed, process=(index, 2))
        assert len(opened) == len(set(opened)) == 4 * BATCH // 2
        seen.append(set(opened))
    assert not seen[0] & seen[1]


def test_batch_that_does_not_divide(streamed: Dataset) -> None:
    with pytest.raises(UserError, match=r"batch_size=6 .* 4 processes: choose 4 or 8"):
        batches(streamed, process=(0, 4))


def test_crops_come_from_the_whole_file(streamed: Dataset) -> None:
    """Slot s of an epoch is cut by the generator seeded with (key, purpose, epoch, s)."""
    key = crop_key(KEY, 2, 1)
    rows = np.asarray(epoch_batches(KEY, 1, len(streamed.train_labels), BATCH))
    found = np.concatenate([images for images, _ in batches(streamed, 1, crop_key=key)])
    for slot, row in enumerate(rows.ravel()):
        path, _ = streamed.train_images._open_image(int(row))
        image = Image.open(path).convert("RGB")
        rng = np.random.default_rng((*key, slot))
        box = random_box(rng, image.height, image.width)
        wanted = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[slot], wanted)


@pytest.mark.parametrize("other", [(KEY, 3, 0), (KEY, 2, 1), (jax.random.key(6), 2, 0)])
def test_crops_depend_on_key_purpose_and_epoch(streamed: Dataset, other) -> None:
    rows = np.zeros((1, BATCH), int)  # one image: only the crops differ
    first = read(streamed, rows, crop_key=crop_key(KEY, 2, 0))[0][0]
    second = read(streamed, rows, crop_key=crop_key(*other))[0][0]
    images = [image.tobytes() for image in (*first, *second)]
    # Small boxes of a small image may coincide; of the same key all 6 would.
    assert len(set(images)) > 2 * BATCH - 3


def test_boxes_have_the_law_of_random_resized_crop() -> None:
    rng = np.random.default_rng(0)
    height, width = 300, 400
    boxes = np.array([random_box(rng, height, width) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0
    assert right.max() == width and bottom.max() == height
    area = (right - left) * (bottom - top) / (height * width)
    aspect = (right - left) / (bottom - top)
    assert 0.078 < area.min() < 0.09 and 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    small = area < 0.5  # these fit always: uniform from 0.08 to 0.5
    assert np.mean(area[small]) == pytest.approx(0.29, abs=0.01)
    assert np.mean(np.log(aspect[small])) == pytest.approx(0, abs=0.02)


def test_no_box_fits_a_ribbon() -> None:
    """The largest central box with a ratio of 3 : 4 or 4 : 3."""
    rng = np.random.default_rng(0)
    assert random_box(rng, 30, 1000) == (480, 0, 520, 30)
    assert random_box(rng, 1000, 30) == (0, 480, 30, 520)


def test_tests_keep_a_share_of_each_side(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (8, 8, 56, 56))  # a red frame round a blue square
    image.save(tmp_path / "frame.png")
    whole = decode(tmp_path / "frame.png", (32, 32))
    inner = decode(tmp_path / "frame.png", (32, 32), keep=0.5)
    assert whole.shape == inner.shape == (32, 32, 3)
    assert tuple(whole[0, 0]) == (255, 0, 0) and tuple(whole[16, 16]) == (0, 0, 255)
    assert np.all(inner == (0, 0, 255))


def stream_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("grain")]


def test_closing_ends_the_threads(streamed: Dataset) -> None:
    others = set(threading.enumerate())
    rows = np.zeros((50, BATCH), int)
    stream = stream_batches(streamed.train_images, streamed.train_labels, rows)
    next(stream)
    mine = set(threading.enumerate()) - others
    assert mine
    stream.close()
    for thread in mine:
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_sent_ahead(streamed: Dataset, prefetch: int) -> None:
    images = streamed.train_images
    images.options = images.options._replace(prefetch=prefetch)
    sent: list[int] = []

    def put(batch: Any) -> Any:
        sent.append(len(batch[1]))
        return batch

    rows = np.zeros((6, BATCH), int)
    stream = stream_batches(images, streamed.train_labels, rows, put=put)
    for step, _ in enumerate(stream):
        assert len(sent) == min(step + 1 + prefetch, 6)
    assert sent == [BATCH] * 6


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_file_in_the_middle(
    odd_folder: Callable[..., Path], workers: int
) -> None:
    root = odd_folder({"a": 13, "b": 9})
    dataset = load(root, workers=workers)
    rows = np.asarray(epoch_batches(KEY, 0, len(dataset.train_labels), 4))
    path, _ = dataset.train_images._open_image(int(rows[2, 1]))
    path.write_bytes(path.read_bytes()[:40])
    images = dataset.train_images
    images.options = images.options._replace(prefetch=0)
    stream = stream_batches(images, dataset.train_labels, rows)
    next(stream), next(stream)  # those before it are whole
    with pytest.raises(UserError, match=f"cannot read image {path} ") as caught:
        next(stream)
    assert "\n" not in str(caught.value)


def test_corrupt_record(data_dir: Path) -> None:
    options: dict[str, Any] = {"mean": (0.3,), "std": (0.3,)}
    options["streaming"] = Streaming("always")
    load_dataset("digits", **options)  # prepares, and keeps the labels
    (path,) = data_dir.glob("digits/*/*train*array_record*")
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 4, len(data) // 2):
        data[i] ^= 0x55
    path.write_bytes(data)
    dataset = load_dataset("digits", **options)
    with pytest.raises(UserError, match=r"cannot read image \d+ of train in") as caught:
        for row in range(len(dataset.train_labels)):
            dataset.train_images.read(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["half", "labels", "empty"])
def test_corrupt_records_at_the_start(data_dir: Path, damage: str) -> None:
    """They are found when the files are opened, or when the labels are read."""
    load_dataset("digits")
    (path,) = data_dir.glob("digits/*/*train*array_record*")
    data = bytearray(path.read_bytes())
    if damage == "labels":
        for i in range(len(data) // 2, len(data) // 2 + 4000):
            data[i] ^= 0x55
    path.write_bytes({"half": data[: len(data) // 2], "empty": b""}.get(damage, data))
    with pytest.raises(UserError, match=r"cannot read .* of train in") as caught:
        load_dataset("digits", streaming=Streaming("always"))
    assert "\n" not in str(caught.value)


def test_records_in_hash_order_are_streamed_in_canonical_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As read into memory: the same images for weights and alphas either way."""
    from darts_jax.data import builder

    info = builder.tfds.core.DatasetInfo

    def shuffling(**arguments: Any) -> Any:
        return info(**arguments | {"disable_shuffling": False})

    monkeypatch.setattr(builder.tfds.core, "DatasetInfo", shuffling)
    options: dict[str, Any] = {
        "num_examples": 30,
        "mean": (0.5,) * 3,
        "std": (1.0,) * 3,
    }
    found = [
        load_dataset("synthetic", streaming=Streaming(mode), **options)
        for mode in ("always", "always", "never")  # the second reads what it has kept
    ]
    wanted = found.pop()
    for dataset in found:
        for split in ("train", "test"):
            labels = getattr(dataset, f"{split}_labels")
            np.testing.assert_array_equal(labels, getattr(wanted, f"{split}_labels"))
            images = getattr(dataset, f"{split}_images")
            read = np.stack([images.read(row) for row in range(len(images))])
            np.testing.assert_array_equal(read, getattr(wanted, f"{split}_images"))


# ---- which data sets are streamed


@pytest.mark.parametrize("name", ["folder", "digits", "synthetic"])
def test_auto_goes_by_the_decoded_size(name: str, odd_folder) -> None:
    options: dict[str, Any] = {}
    if name == "folder":
        root = odd_folder({"a": 13, "b": 9})
        options, total = {"path": str(root), "image_size": SIZE}, 22 * SIZE * SIZE * 3
    elif name == "digits":
        total = 1797 * 8 * 8
    else:
        options, total = {"num_examples": 40}, 50 * 16 * 16 * 3
    for extra, streams in ((-1, True), (0, False)):
        chosen = Streaming("auto", resident_gib=(total + extra) / 2**30)
        dataset = load_dataset(name, streaming=chosen, **options)
        assert dataset.streamed is streams


def test_directory_prepared_by_others(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left as it is, found by its version, and its labels are read only once."""
    resident = load_dataset("digits")
    chosen = Streaming("auto")
    for path in (data_dir / "digits", data_dir / "digits" / "1.0.0"):
        dataset = load_dataset("folder", path=str(path), streaming=chosen)
        assert dataset.streamed
        np.testing.assert_array_equal(dataset.train_labels, resident.train_labels)
        assert dataset.class_names == resident.class_names
        monkeypatch.setattr(
            "darts_jax.data.records.Records.index",
            lambda self: pytest.fail("the labels were read again"),
        )
    small = load_dataset("folder", path=str(path), image_size=5, streaming=chosen)
    assert small.train_images.read(0).shape == (5, 5, 1)
    with pytest.raises(UserError, match="can only be streamed"):
        load_dataset("folder", path=str(path))


def test_prepared_set_of_mixed_sizes(tmp_path: Path, data_dir: Path) -> None:
    """As ImageNet's: the features give no height and width, tests are "validation"."""
    from darts_jax.data import builder
    from darts_jax.data.source import Contents, Example, Source

    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (*rng.integers(9, 30, 2), 3), np.uint8) for _ in range(12)
    ]

    def examples(some: list[np.ndarray]) -> Any:
        return iter([Example(image, i % 2) for i, image in enumerate(some)])

    contents = Contents(
        (None, None, 3),  # type: ignore[arg-type]
        ("a", "b"),
        8,
        4,
        examples(images[:8]),
        examples(images[8:]),
    )
    source = Source("mixed", "1.0.0", "", lambda: contents)
    builder.prepare(source, contents, data_dir)
    directory = data_dir / "mixed" / "1.0.0"
    for path in directory.glob("*-test.array_record*"):
        path.rename(path.with_name(path.name.replace("test", "validation")))
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"name": "test"', '"name": "validation"'))

    options = {"path": str(directory), "streaming": Streaming("auto")}
    with pytest.raises(UserError, match=r"dataset\.image_size=N"):
        load_dataset("folder", **options)
    dataset = load_dataset("folder", image_size=SIZE, **options)
    assert len(dataset.test_labels) == 4
    Image.fromarray(images[3]).save(tmp_path / "x.png")
    wanted = decode(tmp_path / "x.png", (SIZE, SIZE))
    np.testing.assert_array_equal(dataset.train_images.read(3), wanted)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda info, features: info.pop("splits"),
        lambda info, features: info["splits"].pop(0),
        lambda info, features: info["splits"].pop(1),
        lambda info, features: features["featuresDict"]["features"].pop("label"),
        lambda info, features: features["featuresDict"]["features"].pop("image"),
        lambda info, features: features["featuresDict"]["features"]["image"][
            "image"
        ].update(shape={"dimensions": [16, 16, 4]}),
    ],
)
def test_directory_of_something_else(data_dir: Path, spoil) -> None:
    load_dataset("synthetic", num_examples=20)
    place = next(data_dir.glob("synthetic/*/1.0.0"))
    info = json.loads((place / "dataset_info.json").read_text())
    features = json.loads((place / "features.json").read_text())
    spoil(info, features)
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match="no prepared set of images with labels") as e:
        load_dataset("folder", path=str(place), streaming=Streaming("auto"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streaming": Streaming("allways")}, "did you mean 'always'"),
        ({"streaming": Streaming("always"), "image_size": 0}, "image_size=N"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 numbers"),
        ({"mean": (0.5, 0.5, 0.5)}, "3 numbers"),
    ],
)
def test_mistakes_are_one_line(odd_folder, options: dict, words: str) -> None:
    root = odd_folder({"a": 5, "b": 5})
    with pytest.raises(UserError, match=words) as caught:
        load_dataset("folder", path=str(root), **{"image_size": 4, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_given_statistics_replace_the_measured(odd_folder, mode: str) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    root = odd_folder({"a": 5, "b": 5})
    dataset = load(root, mode=mode, mean=mean, std=std)
    assert (dataset.mean, dataset.std) == (mean, std)
