"""The PyTorch baseline computes what ours does: same networks, same steps, in float64."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from darts_jax.interop import Leaf, to_reference
from darts_jax.models import make_supernet
from darts_jax.spaces import SPACES
from darts_jax.verification.golden import (
    Golden,
    read_genotype,
    read_kinds,
    read_named,
    relative_error,
)

torch = pytest.importorskip(
    "torch", reason="no PyTorch: pip install -e '.[benchmark]' for its baseline"
)

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-9
COUNTER = "num_batches_tracked"


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch in float64, its modules of benchmarks/ found by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    torch.set_default_dtype(torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: on busy cores threads wait for each other
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _golden(name: str) -> Golden:
    with np.load(ROOT / "tests" / "golden" / name) as archive:
        return Golden({key: archive[key] for key in archive.files})


def _tensor(x: Any) -> Any:
    x = np.array(x)
    return torch.from_numpy(x.astype(np.float64 if x.dtype.kind == "f" else np.int64))


def _load(model: Any, state_dict: dict[str, np.ndarray]) -> None:
    """Loads all of a state dict; only the counters of batch norm may be missing in it."""
    given = {name: _tensor(value) for name, value in state_dict.items()}
    result = model.load_state_dict(given, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith(COUNTER) for name in result.missing_keys)


@pytest.fixture
def golden() -> Golden:
    return _golden("search_cnn.npz")


@pytest.fixture
def search(golden: Golden) -> Any:
    """The golden file's supernet in PyTorch, as the baseline searches with it."""
    model = _module("torch_networks").Supernet(
        SPACES["darts"](),
        num_cells=int(golden["num_cells"]),
        channels=int(golden["channels"]),
        image_channels=3,
        num_classes=int(golden["num_classes"]),
    )
    weights = read_named(golden, "params_index_json", "w")
    _load(model, weights | read_named(golden, "buffers_index_json", "bn_before"))
    alphas = {
        kind: _tensor(values).requires_grad_()
        for kind, values in read_kinds(golden, "alphas_{}").items()
    }
    return _module("torch_steps").Search(model, alphas)


@pytest.fixture
def with_momentum(search: Any, golden: Golden) -> Any:
    buffers = read_named(golden, "params_index_json", "momentum_buffer")
    for name, weight in search.model.named_parameters():
        state = search.weight_optimizer.state[weight]
        state["momentum_buffer"] = _tensor(buffers[name])
    return search


def _batch(golden: Golden, name: str) -> tuple[Any, Any]:
    return _tensor(golden[f"x_{name}"]), _tensor(golden[f"y_{name}"])


def _statistics(model: Any) -> dict[str, Any]:
    return {n: b.clone() for n, b in model.named_buffers() if not n.endswith(COUNTER)}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_forward_pass_of_the_supernet(
    mode: str, search: Any, golden: Golden
) -> None:
    search.model.train(mode == "train")
    images, _ = _batch(golden, "valid")
    edge_weights = {
        kind: tuple(row.unbind() for row in values.softmax(1).unbind())
        for kind, values in search.alphas.items()
    }
    logits = search.model(images, edge_weights).detach()
    wanted = golden[f"{mode}_mode/logits_valid"]
    assert relative_error(logits.numpy(), wanted) < TOLERANCE
    if mode == "train":
        wanted = read_named(golden, "buffers_index_json", "bn_after_train_forward")
        assert relative_error(_statistics(search.model), wanted) < TOLERANCE


def test_the_baseline_does_without_jax() -> None:
    code = "import sys, torch_supernet; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks")
    assert done.returncode == 0


def test_a_compiled_model_takes_its_place(search: Any) -> None:
    compiled = torch.compile(search.model)  # lazily: nothing is compiled yet
    again = type(search)(search.model, search.alphas, forward=compiled)
    assert again.forward is compiled


@pytest.mark.parametrize("momentum", [False, True])
def test_the_finite_difference(
    momentum: bool, search: Any, golden: Golden, request: pytest.FixtureRequest
) -> None:
    if momentum:
        request.getfixturevalue("with_momentum")
    before = [w.detach().clone() for w in search.weights]
    grads = search.finite_difference(_batch(golden, "train"), _batch(golden, "valid"))
    name = "unrolled_mom" if momentum else "unrolled_nomom"
    wanted = read_kinds(golden, f"{name}/fd_dalphas_{{}}")
    ours = dict(zip(search.alphas, (g.numpy() for g in grads), strict=True))
    assert relative_error(ours, wanted) < TOLERANCE
    # The weights are back where they were, to the bit.
    assert all(map(torch.equal, search.weights, before))


def test_the_virtual_pass_leaves_the_statistics(search: Any, golden: Golden) -> None:
    train, valid = _batch(golden, "train"), _batch(golden, "valid")
    with torch.no_grad():
        before = _statistics(search.model)
        with _module("torch_steps").statistics_kept(search.model):
            search.loss(valid)
        kept = _statistics(search.model)
        assert all(torch.equal(kept[name], before[name]) for name in before)
        search.loss(train)
        moved = _statistics(search.model)
        assert not all(torch.equal(moved[name], before[name]) for name in before)


def test_a_search_step(with_momentum: Any, golden: Golden) -> None:
    search = with_momentum
    step = _module("torch_steps").search_step(
        search,
        "first_order",
        "alphas_first",
        _batch(golden, "train"),
        _batch(golden, "valid"),
    )
    loss = step()
    assert relative_error(loss.numpy(), golden["search_step/train_loss"]) < TOLERANCE
    ours = {n: w.detach().numpy() for n, w in search.model.named_parameters()}
    wanted = read_named(golden, "params_index_json", "search_step/w_after")
    assert relative_error(ours, wanted) < TOLERANCE
    ours = {kind: a.detach().numpy() for kind, a in search.alphas.items()}
    wanted = read_kinds(golden, "search_step/alphas_{}")
    assert relative_error(ours, wanted) < TOLERANCE


def test_the_derived_network() -> None:
    golden = _golden("derived_darts_v2.npz")
    model = _module("torch_networks").Network(
        read_genotype(golden),
        num_cells=int(golden["num_cells"]),
        channels=int(golden["channels"]),
        image_channels=3,
        num_classes=int(golden["num_classes"]),
        auxiliary=True,
    )
    _load(model, {k[2:]: golden[k] for k in golden if k[:2] == "w/"})
    images, labels = _tensor(golden["x"]), _tensor(golden["y"])
    with torch.no_grad():
        logits = model.eval()(images)
    assert relative_error(logits.numpy(), golden["eval_mode/logits"]) < TOLERANCE
    logits, auxiliary = model.train()(images)
    assert (
        relative_error(logits.detach().numpy(), golden["train_mode/logits"]) < TOLERANCE
    )
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss = loss + 0.4 * torch.nn.functional.cross_entropy(auxiliary, labels)
    loss.backward()
    wanted = {k[3:]: golden[k] for k in golden if k.startswith("dw/")}
    ours = {n: w.grad.numpy() for n, w in model.named_parameters()}
    assert relative_error(ours, wanted) < TOLERANCE


def test_drop_path_zeroes_whole_samples() -> None:
    torch.manual_seed(0)
    y = _module("torch_networks").drop_path(torch.ones(1000, 2, 2, 2), 0.25)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0.2 < dropped.all(1).double().mean() < 0.3
    assert torch.allclose(y[~dropped.all(1)], torch.tensor(1 / 0.75))


def _norm_leaves(reference: str, path: tuple[str, ...], edge: int | None) -> list[Leaf]:
    names = {"weight": "scale", "bias": "bias"}
    names |= {"running_mean": "mean", "running_var": "var"}
    return [Leaf(f"{reference}.{k}", (*path, v), edge) for k, v in names.items()]


def _nas_bench_201_leaves(num_cells: int, weights: dict[str, Any]) -> list[Leaf]:
    """Where the tensors of the baseline's NAS-Bench-201 supernet live in ours."""
    space = SPACES["nas_bench_201"]()
    leaves = [
        Leaf("stem.0.weight", ("stem_conv0", "conv"), 0),
        *_norm_leaves("stem.1", ("stem_norm0",), 0),
        *_norm_leaves("last_norm", ("last_norm",), None),
        Leaf("classifier.weight", ("classifier", "linear"), None),
    ]
    (bias,) = (name for name in weights["classifier"] if name != "linear")
    leaves.append(Leaf("classifier.bias", ("classifier", bias), None))
    for stage in range(3):
        row = stage * (num_cells + 1)  # the baseline lists residual blocks as cells
        for name in ("conv_a", "conv_b") if stage else ():
            path = (f"reduce{stage}", name, "conv0", "conv")
            block = f"cells.{row - 1}.{name}"
            leaves.append(Leaf(f"{block}.op.1.weight", path, 0))
            leaves += _norm_leaves(f"{block}.op.2", (*path[:2], "norm0"), 0)
        if stage:
            path = (f"reduce{stage}", "shortcut", "conv")
            leaves.append(Leaf(f"cells.{row - 1}.shortcut.weight", path, 0))
        for i in range(num_cells):
            for source in {source for source, _ in space.edges}:
                edges = [e for e, (s, _) in enumerate(space.edges) if s == source]
                cell = (f"cell{stage * num_cells + i}", f"source{source}")
                leaves += [
                    Leaf(
                        f"cells.{row + i}._ops.{e}._ops.{o}.op.1.weight",
                        (*cell, primitive, "conv0", "conv"),
                        place,
                    )
                    for place, e in enumerate(edges)
                    for o, primitive in enumerate(space.primitives)
                    if primitive.startswith("nor_conv")
                ]
    return leaves


def test_the_supernet_of_nas_bench_201() -> None:
    size: dict[str, Any] = {"num_cells": 1, "channels": 2, "num_classes": 10}
    space, rng = SPACES["nas_bench_201"](), np.random.default_rng(0)
    images = rng.standard_normal((3, 6, 6, 3))
    edge_weights = {"cell": rng.random((space.num_edges, len(space.primitives)))}
    model = make_supernet(space, image_shape=(6, 6, 3), **size)
    weights, stats = jax.tree.map(
        lambda x: rng.standard_normal(x.shape),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    with jax.enable_x64(True):
        ours, _ = jax.jit(lambda *given: model.apply(*given, edge_weights, train=True))(
            weights, stats, images
        )
    theirs = _module("torch_nas_bench_201").NasBench201Supernet(
        space, image_channels=3, **size
    )
    leaves = _nas_bench_201_leaves(size["num_cells"], weights)
    _load(theirs, to_reference(weights, stats, leaves))
    rows = tuple(row.unbind() for row in _tensor(edge_weights["cell"]).unbind())
    logits = theirs(_tensor(images.transpose(0, 3, 1, 2)), {"cell": rows})
    assert relative_error(np.asarray(ours), logits.detach().numpy()) < TOLERANCE
