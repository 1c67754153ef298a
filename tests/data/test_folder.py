"""Folders of images: layouts, modes, sizes, the canonical order, and broken ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darts_jax.data import load_dataset, split
from darts_jax.errors import UserError


def load(root: Path, **options):
    return load_dataset("folder", path=str(root), **options)


def test_classes_without_a_test_folder(image_folder) -> None:
    dataset = load(image_folder({"dog": 10, "cat": 25, "ant": 5}))
    assert dataset.class_names == ("ant", "cat", "dog")
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [4, 20, 8])
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [1, 5, 2])
    assert dataset.train_images.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_train_and_test_folders(image_folder, test_name: str) -> None:
    image_folder({"b": 3, "a": 4}, root="images/train")
    image_folder({"b": 2}, root=f"images/{test_name}")
    with pytest.raises(UserError, match="at least 2"):
        load(image_folder({}))
    root = image_folder({"a": 1}, root=f"images/{test_name}").parent
    dataset = load(root)
    assert dataset.class_names == ("a", "b")
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [4, 3])
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [1, 2])


def test_pixels_and_labels_survive(image_folder) -> None:
    root = image_folder({"a": 6, "b": 7})
    dataset = load(root)
    stored = {
        image.tobytes(): int(label)
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        )
        for image, label in zip(images, labels, strict=True)
    }
    expected = {
        np.asarray(Image.open(path)).tobytes(): "ab".index(path.parent.name)
        for path in root.glob("*/*.png")
    }
    assert stored == expected and len(stored) == 13


def test_every_prefix_holds_every_class(image_folder) -> None:
    """A canonical order class by class would leave classes out of one half of a search."""
    dataset = load(image_folder({"a": 40, "b": 20, "c": 4}))
    order = dataset.train_labels
    assert not np.array_equal(order, np.sort(order))
    counts = np.bincount(order)
    for fraction in (0.25, 0.5, 0.75):
        train, valid = split(dataset, fraction)
        for part, share in ((train, fraction), (valid, 1 - fraction)):
            found = np.bincount(part.labels, minlength=3)
            assert np.all(np.abs(found - share * counts) <= 1.5)
            assert found.min() > 0


def test_order_does_not_depend_on_place_or_time(image_folder, tmp_path: Path) -> None:
    root = image_folder({"a": 8, "b": 8})
    first = load(root)
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    second = load(tmp_path / "elsewhere")
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_a_changed_folder_is_converted_again(image_folder) -> None:
    root = image_folder({"a": 5, "b": 5})
    first = load(root)
    for path in (root / "a").iterdir():
        Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    second = load(root)
    black = second.train_images[second.train_labels == 0]
    assert np.all(black == np.array([1, 2, 3]))
    assert not np.array_equal(first.train_images, second.train_images)
    image_folder({"a": 6})
    assert len(load(root).train_images) + len(load(root).test_images) == 11


def test_modes_become_rgb(image_folder) -> None:
    root = image_folder({"a": 2, "b": 2})
    shutil.rmtree(root / "a")
    (root / "a").mkdir()
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.convert("P").save(root / "a" / "palette.png")
    red.convert("RGBA").save(root / "a" / "alpha.png")
    red.convert("CMYK").save(root / "a" / "cmyk.jpg", quality=100)
    Image.new("L", (8, 8), 200).save(root / "a" / "grey.png")
    Image.new("1", (8, 8), 1).save(root / "a" / "bits.png")
    deep = np.full((8, 8), 200 * 256, np.uint16)
    Image.fromarray(deep).save(root / "a" / "deep.png")
    dataset = load(root)
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    found = sorted(tuple(map(int, image[4, 4])) for image in images[labels == 0])
    white, grey = (255,) * 3, (200,) * 3
    assert found.count(white) == 1 and found.count(grey) == 2
    reds = [f for f in found if f[0] > 240 and f[1] < 15 and f[2] < 15]
    assert len(reds) == 3


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "real numbers of no known scale"),
        (np.arange(64, dtype=np.int32), "32-bit values are not those of a 16-bit"),
        (
            np.arange(64, dtype=np.int32) << 12,
            "32-bit values are not those of a 16-bit",
        ),
    ],
)
def test_values_of_no_known_scale_are_not_made_black(
    pixels: np.ndarray, reason: str, image_folder
) -> None:
    root = image_folder({"a": 2, "b": 2})
    Image.fromarray(pixels.reshape(8, 8)).save(root / "b" / "deep.tif")
    with pytest.raises(UserError, match=f"b/deep.tif .*{reason}"):
        load(root)


def test_sizes(image_folder) -> None:
    root = image_folder({"a": 3, "b": 3}, size=(12, 8))
    assert load(root).train_images.shape[1:] == (8, 12, 3)  # all agree
    assert load(root, image_size=6).train_images.shape[1:] == (6, 6, 3)
    image_folder({"a": 1}, size=(50, 20))
    assert load(root).train_images.shape[1:] == (32, 32, 3)  # mixed


def test_resize_keeps_the_centre_and_the_aspect(image_folder) -> None:
    root = image_folder({"b": 2})
    (root / "a").mkdir()
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255  # a white square in the middle
    for i in range(2):
        Image.fromarray(wide).save(root / "a" / f"{i}.png")
    dataset = load(root, image_size=8)
    assert np.all(dataset.train_images[dataset.train_labels == 0][:, :, 1:-1] > 200)


def test_other_files_and_nested_folders(image_folder) -> None:
    root = image_folder({"a": 3, "b": 2})
    (root / "a" / "deeper").mkdir()
    shutil.move(root / "a" / "0.png", root / "a" / "deeper" / "0.PNG")
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / ".hidden.png").write_text("x")
    (root / "readme.md").write_text("x")
    (root / ".git").mkdir()
    dataset = load(root)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 5


def test_a_class_may_be_called_train(image_folder) -> None:
    """As one of CIFAR-100's is."""
    dataset = load(image_folder({"train": 5, "test": 5, "bus": 5}))
    assert dataset.class_names == ("bus", "test", "train")
    assert len(dataset.train_labels) == 12


def test_a_test_folder_without_labels_is_no_split(image_folder) -> None:
    root = image_folder({"train/a": 5, "train/b": 4, "val/a": 2, "val/b": 3, "test": 4})
    dataset = load(root)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (9, 5)


def _spoil_missing(root: Path) -> None:
    shutil.rmtree(root)


def _spoil_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("x")


def _spoil_empty_class(root: Path) -> None:
    (root / "c").mkdir()


def _spoil_single_class(root: Path) -> None:
    shutil.rmtree(root / "a")


def _spoil_no_images(root: Path) -> None:
    for name in "ab":
        shutil.rmtree(root / name)


def _spoil_corrupt(root: Path) -> None:
    (root / "a" / "1.png").write_bytes(b"this is not an image")


def _spoil_truncated(root: Path) -> None:
    path = root / "a" / "1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-60])


def _spoil_checksum(root: Path) -> None:
    path = root / "a" / "1.png"
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)


def _spoil_lonely(root: Path) -> None:
    for i in range(1, 5):
        (root / "a" / f"{i}.png").unlink()


def _spoil_no_train(root: Path) -> None:
    (root / "test").mkdir()
    shutil.move(root / "a", root / "test" / "a")
    shutil.move(root / "b", root / "test" / "b")


def _spoil_capitals(root: Path) -> None:
    for place in ("Train", "Test"):
        shutil.copytree(root / "a", root / place / "a")
        shutil.copytree(root / "b", root / place / "b")
    shutil.rmtree(root / "a"), shutil.rmtree(root / "b")


def _spoil_unknown_class(root: Path) -> None:
    for place in ("train", "test"):
        shutil.copytree(root / "a", root / place / "a")
        shutil.copytree(root / "b", root / place / "b")
    (root / "test" / "b").rename(root / "test" / "bee")


def _spoil_dangling(root: Path) -> None:
    os.symlink("/nonexistent", root / "a" / "9.png")


def _spoil_pipe(root: Path) -> None:
    os.mkfifo(root / "a" / "9.png")


def _spoil_name(name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        os.rename(root / "a", os.path.join(root, os.fsdecode(name.encode("latin-1"))))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil_pipe, "a/9.png is no file"),
        (_spoil_name("x\ny"), r"rename the class folder 'x\ny'"),
        (_spoil_name(" "), "rename the class folder ' '"),
        (_spoil_name("x\xff"), "rename the class folder 'x\\udcff'"),
        (_spoil_missing, "does not exist"),
        (_spoil_file, "is not a folder"),
        (_spoil_empty_class, "holds no images"),
        (_spoil_single_class, "1 class folders ['b']"),
        (_spoil_no_images, "0 class folders"),
        (_spoil_corrupt, "a/1.png"),
        (_spoil_truncated, "a/1.jpg"),
        (_spoil_checksum, "a/1.png"),
        (_spoil_lonely, "class 'a' has 1 image"),
        (_spoil_no_train, "no train folder"),
        (_spoil_capitals, "Test holds folders and looks like a split"),
        (_spoil_unknown_class, "class 'bee'"),
        (_spoil_dangling, "a/9.png"),
    ],
)
def test_broken_folders_are_one_line(image_folder, data_dir, spoil, words) -> None:
    root = image_folder({"a": 5, "b": 5})
    spoil(root)
    with pytest.raises(UserError) as caught:
        load(root)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    # Nothing that looks finished stays behind.
    assert not list(data_dir.rglob("dataset_info.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_class(image_folder) -> None:
    root = image_folder({"a": 5, "b": 5})
    (root / "a").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot read"):
            load(root)
    finally:
        (root / "a").chmod(0o700)


def test_too_large_for_the_disk(image_folder) -> None:
    root = image_folder({"a": 5, "b": 5})
    with pytest.raises(UserError, match="image_size=N"):
        load(root, image_size=2_000_000)


def test_cifar10_as_jpeg(shared: Path, tmp_path: Path) -> None:
    """Two thousand real JPEG files: sizes found, classes sorted, colours plausible."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog")
    names += ("horse", "ship", "truck")
    with np.load(shared / "cifar10_jpeg" / "mini.npz", allow_pickle=False) as archive:
        header = archive["header"].tobytes()
        for part in ("train", "test"):
            body = archive[f"{part}_bytes"].tobytes()
            offsets = archive[f"{part}_offsets"]
            labels = archive[f"{part}_labels"]
            for i, label in enumerate(labels):
                place = tmp_path / "cifar" / part / names[label]
                place.mkdir(parents=True, exist_ok=True)
                data = header + body[offsets[i] : offsets[i + 1]]
                (place / f"{i:04d}.jpg").write_bytes(data)
    dataset = load(tmp_path / "cifar")
    assert dataset.class_names == names
    assert dataset.train_images.shape == (2000, 32, 32, 3)
    assert dataset.test_images.shape == (500, 32, 32, 3)
    np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465), atol=0.02)
