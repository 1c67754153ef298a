"""Golden vectors of the reference against our networks, in float64."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from darts_jax import verification
from darts_jax.errors import UserError
from darts_jax.models.operations import OPERATIONS
from darts_jax.verification.golden import (
    TOLERANCE,
    Check,
    Golden,
    read_genotype,
    relative_error,
)
from darts_jax.verification.operations import verify_operations

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NOT_IN_REFERENCE = {"nor_conv_1x1", "nor_conv_3x3", "noise"}


def _load(name: str) -> Golden:
    with np.load(GOLDEN / name) as archive:
        return Golden({key: archive[key] for key in archive.files})


def _cases() -> list[str]:
    with np.load(GOLDEN / "ops_cnn.npz") as archive:
        return sorted({k.rsplit("/", 1)[0] for k in archive.files if k[-2:] == "/x"})


@pytest.fixture
def float64() -> Iterator[None]:
    """Only here: the rest of the tests runs in float32, as users do."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Compilation in half the time; the slow tests and the script compile as users do."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def operations() -> Golden:
    return _load("ops_cnn.npz")


def _assert_passed(checks: list[Check]) -> None:
    failed = [(c.quantity, c.error) for c in checks if not c.passed]
    assert not failed


def test_the_file_has_every_primitive_of_the_reference() -> None:
    given = {case.split("/")[0] for case in _cases()}
    assert given == set(OPERATIONS) - NOT_IN_REFERENCE


@pytest.mark.parametrize("case", _cases())
def test_an_operation(
    case: str, operations: Golden, float64: None, quick_compilation: None
) -> None:
    part = Golden({k: v for k, v in operations.items() if k.startswith(f"{case}/")})
    checks = list(verify_operations(part))
    assert [c.quantity for c in checks] == [
        f"{case}/{name}" for name in ("y_train", "dx_train", "y_eval")
    ]
    _assert_passed(checks)


def test_the_derived_network(float64: None, quick_compilation: None) -> None:
    kind, checks = verification.verify_file(GOLDEN / "derived_darts_v2.npz")
    assert kind == "derived network"
    done = list(checks)
    assert {c.quantity for c in done} >= {
        "train_mode/logits",
        "train_mode/logits_aux",
        "train_mode/loss_with_0.4_aux",
        "weight gradients",
        "weight gradient norms",
        "batch statistics",
        "eval_mode/logits",
        "eval_mode/loss",
    }
    _assert_passed(done)


def test_the_supernet_forward(float64: None, quick_compilation: None) -> None:
    kind, checks = verification.verify_file(GOLDEN / "search_cnn.npz")
    assert kind == "supernet"
    done = []
    for check in checks:  # lazily: what comes after takes minutes to compile
        done.append(check)
        if check.quantity == "batch statistics":
            break
    assert [c.quantity for c in done] == [
        *(f"train_mode/{x}" for x in ("stem", "cell0", "cell1", "cell2")),
        "train_mode/logits",
        "train_mode/loss",
        "batch statistics",
    ]
    _assert_passed(done)


@pytest.mark.slow
def test_the_supernet_gradients_and_hypergradients(float64: None) -> None:
    done = list(verification.verify_file(GOLDEN / "search_cnn.npz")[1])
    quantities = {c.quantity for c in done}
    assert quantities >= {
        "eval_mode/logits",
        "weight gradients",
        "first_order/alpha gradients",
        "search_step/weights",
        "search_step/alphas",
        "genotype",
    }
    for start in ("unrolled_nomom", "unrolled_mom"):
        assert quantities >= {
            f"{start}/finite_difference alpha gradients",
            f"{start}/loss at the virtual weights",
            f"{start}/alphas after Adam",
            f"{start}/unrolled (exact) alpha gradients",
        }
    _assert_passed(done)
    # Only the finite difference of the smallest radius may be further off, by rounding.
    loose = [c.quantity for c in done if c.tolerance > TOLERANCE]
    assert all("radius 1e-06" in quantity for quantity in loose)


def test_relative_error_is_relative_to_the_largest_value() -> None:
    golden = np.array([1.0, -4.0])
    assert relative_error(golden, golden) == 0
    assert relative_error(np.array([1.5, -4.0]), golden) == 0.5 / 4
    assert relative_error(np.array([0.25]), np.array([0.0])) == 0.25
    assert relative_error(np.zeros(3), golden) == float("inf")  # not broadcast
    assert relative_error(np.zeros((1, 2)), golden) == float("inf")


def test_relative_error_of_a_dictionary_is_the_largest() -> None:
    golden = {"a": np.array([1.0]), "b": np.array([2.0]), "c": np.array([1.0])}
    ours = golden | {"b": np.array([3.0])}
    assert relative_error(ours, golden) == 0.5


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_a_nan_never_passes(key: str) -> None:
    golden = {"a": np.array([1.0]), "b": np.array([2.0]), "c": np.array([1.0])}
    ours = golden | {key: np.array([np.nan])}
    assert not Check("x", relative_error(ours, golden)).passed
    assert not Check("x", relative_error(golden, ours)).passed


def test_a_changed_weight_shows(operations: Golden, float64: None) -> None:
    case = "dil_conv_3x3/s1/affine"
    part = Golden({k: v for k, v in operations.items() if k.startswith(f"{case}/")})
    kernel = part[f"{case}/w/op.1.weight"].copy()
    kernel[2, 0, 1, 0] += 1e-3
    part[f"{case}/w/op.1.weight"] = kernel
    assert not any(check.passed for check in verify_operations(part))


def test_the_genotype_is_read_in_the_files_order() -> None:
    genotype = read_genotype(_load("derived_darts_v2.npz"))
    normal, reduce = genotype.cells["normal"], genotype.cells["reduce"]
    assert normal.nodes[0] == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))
    assert normal.nodes[3] == (("skip_connect", 0), ("dil_conv_3x3", 2))
    assert reduce.nodes[3] == (("skip_connect", 2), ("max_pool_3x3", 1))
    assert normal.concat == reduce.concat == (2, 3, 4, 5)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="no 'alphas_normal'"):
        Golden()["alphas_normal"]
