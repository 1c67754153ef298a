"""From a config to data, space, optimizers and augmentation: every field arrives."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from darts_jax import spaces
from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.commands.configuration import load_file, resolve_preset
from darts_jax.data import AUGMENTATIONS, normalise
from darts_jax.errors import UserError
from darts_jax.training import setup
from darts_jax.training.optimizers import weight_optimizer
from darts_jax.training.parallel import one_device

LISTS = str(Path(spaces.__file__).with_name("robust_darts.json"))


@pytest.fixture
def config(repository: Path) -> ConfigDict:
    loaded = load_file(repository / "configs" / "search_digits.py", "tiny")
    resolve_preset(loaded)
    return loaded


def test_dataset_takes_every_field(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        setup, "load_dataset", lambda name, **options: given.update(options, name=name)
    )
    config.dataset.update(path="p", data_dir="d", image_size=9, limit=7, test_limit=5)
    config.dataset.update(fraction=0.3, subset_seed=2, mean=(0.1,), std=(0.2,))
    config.dataset.update(streaming="always", resident_gib=1.5, workers=7, prefetch=1)
    config.dataset.update(test_crop=0.9)
    setup.read_dataset(config)
    streaming = given.pop("streaming")
    assert streaming == ("always", 1.5, 7, 1, 0.9)
    fields = dict(config.dataset)
    for name in ("train_fraction", "streaming", *streaming._fields[1:]):
        del fields[name]
    assert given == fields


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "kinds"),
    [
        ("darts", 2, 5, ("normal", "reduce")),
        ("tiny", 3, 9, ("normal", "reduce")),
        ("nas_bench_201", 3, 6, ("cell",)),
        ("nas_bench_201", 2, 3, ("cell",)),
        ("darts_s2", 2, 5, ("normal", "reduce")),
        ("nas_bench_201", 0, 6, ("cell",)),
        ("darts", 0, 14, ("normal", "reduce")),
        ("tiny", 0, 5, ("normal", "reduce")),
    ],
)
def test_space(
    name: str, nodes: int, edges: int, kinds: tuple[str, ...], config: ConfigDict
) -> None:
    config.space, config.model.num_nodes = name, nodes
    config.model.primitives = ()
    space = setup.build_space(config)
    assert (space.num_edges, space.cell_kinds) == (edges, kinds)
    assert not nodes or space.num_nodes == nodes


def test_space_with_chosen_primitives(config: ConfigDict) -> None:
    space = setup.build_space(config)
    assert space.primitives == ("none", "skip_connect", "sep_conv_3x3")


def test_space_with_primitives_of_each_edge(config: ConfigDict, tmp_path: Path) -> None:
    lists = {"normal": [["noise"], ["none", "skip_connect"]], "reduce": [["noise"]] * 2}
    path = tmp_path / "edges.json"
    path.write_text(json.dumps(lists))
    config.model.update(num_nodes=1, primitives=(), edge_primitives=str(path))
    space = setup.build_space(config)
    assert space.allowed("normal", 1) == ("none", "skip_connect")
    assert space.allowed("reduce", 1) == ("noise",)


@pytest.mark.parametrize(
    ("model", "space", "message"),
    [
        ({"edge_primitives": "gone.json"}, "darts", "cannot read gone.json"),
        ({"edge_primitives": __file__}, "darts", "edge_primitives: cannot read"),
        ({"primitives": ("noise",)}, "darts_s1", "'darts_s1' has its own primitives"),
        (
            {"primitives": (), "edge_primitives": LISTS},
            "darts_s1",
            "set config.model.edge_primitives=''$",
        ),
        ({"num_nodes": 2, "primitives": ()}, "darts_s1", "edge_primitives of normal"),
    ],
)
def test_unusable_space(
    model: dict[str, Any], space: str, message: str, config: ConfigDict
) -> None:
    config.space = space
    config.model.update(model)
    with pytest.raises(UserError, match=message) as error:
        setup.build_space(config)
    assert "\n" not in str(error.value)


def test_more_steps_than_a_state_counts(config: ConfigDict) -> None:
    config.num_epochs = 2**31 // 3
    setup.build_schedule(config, 3)
    config.num_epochs += 1
    with pytest.raises(UserError, match=f"choose at most {2**31 // 3}$"):
        setup.build_schedule(config, 3)


def test_batch_larger_than_the_data() -> None:
    assert setup.steps_per_epoch(8, 17, "training") == 2
    assert setup.steps_per_epoch(17, 17, "training") == 1
    with pytest.raises(UserError, match=r"batch_size=18 .* 17 upper-level images"):
        setup.steps_per_epoch(18, 17, "upper-level")


def test_images_stay_bytes_on_the_device(config: ConfigDict) -> None:
    dataset = setup.read_dataset(config)
    split = setup.on_device(
        setup.Split(dataset.train_images, dataset.train_labels), one_device()
    )
    assert (split.images.dtype, split.labels.dtype) == (jnp.uint8, jnp.int32)
    np.testing.assert_array_equal(split.images, dataset.train_images)


def test_augmentation_takes_every_field(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setitem(
        AUGMENTATIONS, "spy", lambda key, images, **options: given.update(options)
    )
    config.augmentation.update(name="spy", crop_padding=3, flip=True, cutout=5)
    dataset = setup.read_dataset(config)
    setup.build_augment(config, dataset)(jax.random.key(0), dataset.train_images[:2])
    assert given == {
        "mean": dataset.mean,
        "std": dataset.std,
        "crop_padding": 3,
        "flip": True,
        "cutout": 5,
    }


def test_without_augmentation_images_are_only_normalised(config: ConfigDict) -> None:
    config.augmentation.update(crop_padding=0, flip=False, cutout=0)
    dataset = setup.read_dataset(config)
    images = jnp.asarray(dataset.train_images[:4])
    found = setup.build_augment(config, dataset)(jax.random.key(0), images)
    wanted = normalise(images, mean=dataset.mean, std=dataset.std)
    np.testing.assert_array_equal(found, wanted)


def test_schedule_spans_the_run(config: ConfigDict) -> None:
    config.num_epochs = 4
    config.weights.update(learning_rate=0.5, learning_rate_min=0.1)
    schedule = setup.build_schedule(config, 3)
    assert float(schedule(jnp.int32(6))) == pytest.approx(0.3)
    config.weights.update(schedule="exponential", decay=0.5)
    assert float(setup.build_schedule(config, 3)(jnp.int32(6))) == pytest.approx(0.125)


@pytest.mark.parametrize("clip", [True, False])
def test_weight_optimizer_takes_every_field(clip: bool, config: ConfigDict) -> None:
    """Without `clip` it is the virtual step's, which never clips."""
    config.weights.update(momentum=0.7, nesterov=True, weight_decay=0.2, clip=0.1)
    built = setup.build_weight_optimizer(config, lambda step: 0.3, clip=clip)
    wanted = weight_optimizer(
        0.3, momentum=0.7, nesterov=True, weight_decay=0.2, clip=0.1 if clip else 0.0
    )
    weights = {"w": jnp.asarray([1.0, -2.0])}
    ends = []
    for optimizer in (built, wanted):
        state, at = optimizer.init(weights), weights
        for grad in (3.0, -5.0):
            updates, state = optimizer.update({"w": jnp.full(2, grad)}, state, at)
            at = optax.apply_updates(at, updates)
        ends.append(at["w"])
    np.testing.assert_array_equal(*ends)


def test_alpha_optimizer_takes_every_field(config: ConfigDict) -> None:
    config.alphas.update(learning_rate=0.1, b1=0.3, b2=0.8, weight_decay=0.2)
    built = setup.build_alpha_optimizer(config)
    alphas = jnp.asarray([1.0, -2.0])
    # Kingma and Ba 2015, algorithm 1, with the decay added to the gradient.
    state, at, first, second = built.init(alphas), alphas, 0.0, 0.0
    for step, grad in enumerate((3.0, -5.0), start=1):
        decayed = grad + 0.2 * at
        first = 0.3 * first + 0.7 * decayed
        second = 0.8 * second + 0.2 * decayed**2
        wanted = at - 0.1 * (first / (1 - 0.3**step)) / (
            jnp.sqrt(second / (1 - 0.8**step)) + 1e-8
        )
        updates, state = built.update(jnp.full(2, grad), state, at)
        at = optax.apply_updates(at, updates)
        np.testing.assert_allclose(at, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_hypergradient_takes_its_options(
    name: str, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setitem(
        HYPERGRADIENTS, name, lambda *args, **options: given.update(options, name=name)
    )
    config.hypergradient = name
    config.finite_difference.radius = 0.07
    setup.build_hypergradient(config)()
    radius = {"radius": 0.07} if name == "finite_difference" else {}
    assert given == {"name": name, **radius}


def test_computation_takes_every_field(config: ConfigDict) -> None:
    config.update(precision="bfloat16")
    config.model.update(implementation="merged", remat=True)
    config.batch_norm.groups = 2
    assert setup.computation(config) == {
        "implementation": "merged",
        "precision": "bfloat16",
        "remat": True,
        "norm_groups": 2,
    }


def test_other_lists_in_the_file_of_edge_primitives_are_noticed(
    config: ConfigDict, tmp_path: Path
) -> None:
    """A run's config has only the file's name."""
    path = tmp_path / "lists.json"
    assert setup.edge_primitives_digest(config) == {}
    config.model.update(num_nodes=1, primitives=(), edge_primitives=str(path))
    found = []
    for second in ("none", "skip_connect", "none"):
        lists = [["skip_connect", "sep_conv_3x3"], ["sep_conv_3x3", second]]
        path.write_text(json.dumps({"reduce": lists, "normal": lists}))
        found += setup.edge_primitives_digest(config).values()
    assert found[0] == found[2] != found[1]
    path.write_text("null")
    with pytest.raises(UserError, match="holds no object with a list of lists"):
        setup.edge_primitives_digest(config)
