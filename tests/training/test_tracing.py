"""The collector is paused while a program is traced, and only then."""

import gc

import pytest

from darts_jax.training.tracing import without_collection


def test_collection_goes_on_afterwards() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="traced"), without_collection():
        assert not gc.isenabled()
        raise ValueError("traced")
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with without_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
