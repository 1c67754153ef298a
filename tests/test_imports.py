"""The floors: a module imports only from rooms below its own; heavy walls hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# The plan of the house. A room is a file or folder of darts_jax/.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "notation": 0,
    "genotype": 0,
    "zoo": 0,
    "kernels": 1,
    "types": 1,
    "spaces": 1,
    "models": 2,
    "bilevel": 2,
    "derive": 2,
    "one_shot": 3,
    "multi_trial": 3,
    "data": 3,
    "training": 4,
    "evaluators": 4,
    "report": 4,
    "interop": 4,
    "benchmark": 5,
    "verification": 5,  # golden files against everything below
    "commands": 6,
    "__main__": 7,  # the door: it only looks a command up
}
WALLS = {"flax": {"models"}, "absl": {"commands"}, "ml_collections": {"commands"}}
NEVER = {"tensorflow", "torch", "torchvision", "pickle"}

ROOT = Path(__file__).resolve().parents[1] / "darts_jax"
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it: also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, "imports are absolute here"
            # `from darts_jax import zoo` names the room in its alias.
            if base == "darts_jax":
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def breaches(room: str, source: str) -> list[str]:
    found = []
    for name in imported(source):
        top, *rest = name.split(".")
        if top == "darts_jax" and rest and rest[0] in FLOORS:
            other = rest[0]
            # Floor 0 is one foundation: genotypes, their notation and the zoo.
            ground = FLOORS[room] == FLOORS[other] == 0
            if other != room and FLOORS[other] >= FLOORS[room] and not ground:
                found.append(f"{room} imports {name}, not below it")
        if top in NEVER or room not in WALLS.get(top, {room}):
            found.append(f"{room} imports {name}")
    return found


def test_every_room_is_in_the_plan() -> None:
    assert {room_of(path) for path in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_within_the_floors(path: Path) -> None:
    assert breaches(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("spaces", "from darts_jax.models.network import network"),
        ("models", "import darts_jax.derive"),
        ("derive", "def f():\n    from darts_jax import training"),
        ("bilevel", "import flax.linen as nn"),
        ("training", "from absl import logging"),
        ("report", "from ml_collections import config_dict"),
        ("interop", "def f():\n    import torch"),
    ],
)
def test_the_walker_sees_a_breach(room: str, source: str) -> None:
    assert len(breaches(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("genotype", "from darts_jax import zoo"),
        ("models", "import flax.linen\nfrom darts_jax.models.layers import Conv"),
        ("commands", "from absl import app\nfrom darts_jax.training import loop"),
        ("spaces", "from darts_jax import __version__"),
    ],
)
def test_the_walker_lets_good_imports_pass(room: str, source: str) -> None:
    assert breaches(room, source) == []


def test_the_ground_floor_needs_no_jax() -> None:
    for path in MODULES:
        if FLOORS[room_of(path)] == 0:
            assert not {n.split(".")[0] for n in imported(path.read_text())} & {"jax"}
