"""Published genotypes as data: one JSON file each, with paper, source and numbers.

The files are read as package data, so they are there in an installed wheel too.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

from darts_jax.errors import unknown
from darts_jax.genotype import Genotype


def names() -> list[str]:
    """Returns the names of all entries in alphabetical order."""
    return sorted(_files().values())


def has(name: str) -> bool:
    """Returns whether the zoo has an entry of this name, in any case."""
    return name.lower() in _files()


def entry(name: str) -> dict[str, Any]:
    """Returns one entry: name, genotype (JSON form), paper, source, reported, computed.

    A number that no source confirms is None. Raises UserError for an unknown name.
    """
    if not has(name):
        raise unknown("zoo genotype", name, names())
    file = resources.files("darts_jax.zoo").joinpath(f"{_files()[name.lower()]}.json")
    return json.loads(file.read_text("utf-8"))


def load(name: str) -> Genotype:
    """Returns the genotype of an entry; raises UserError for an unknown name."""
    return Genotype.from_json(entry(name)["genotype"])


@cache
def _files() -> dict[str, str]:
    """{lower-case name: name}; the folder is the registry, a new file a new entry."""
    folder = resources.files("darts_jax.zoo").iterdir()
    stems = [
        file.name[: -len(".json")] for file in folder if file.name.endswith(".json")
    ]
    return {stem.lower(): stem for stem in stems}
