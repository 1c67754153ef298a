"""The zoo: every entry is complete, valid and says where its numbers come from."""

import json
import re
from pathlib import Path

import pytest

from darts_jax import zoo
from darts_jax.errors import UserError
from darts_jax.genotype import Genotype

# Entry names here and in the collected reference data.
REFERENCE_NAMES = {
    "NASNet_A": "NASNet",
    "AmoebaNet_A": "AmoebaNet",
    "PC_DARTS_CIFAR": "PC_DARTS_cifar",
    "PC_DARTS_IMAGENET": "PC_DARTS_image",
    "P_DARTS": "PDARTS",
    "DrNAS_CIFAR10": "DrNAS_cifar10",
    "DrNAS_IMAGENET": "DrNAS_imagenet",
    "Beta_DARTS": "BetaDARTS_released",
    "DARTS_PT_S1_1": "darts_pt_s1_1",
    **{f"DARTS_PT_S5_{i}": f"darts_pt_s5_{i}" for i in range(4)},
}


def test_the_expected_names_are_there() -> None:
    assert set(REFERENCE_NAMES) <= set(zoo.names())
    assert {"DARTS_V1", "DARTS_V2", "GDAS_V1", "SNAS", "MdeNAS"} <= set(zoo.names())
    assert {"SDARTS_RS", "SDARTS_ADV", "FairDARTS_A"} <= set(zoo.names())
    assert zoo.names() == sorted(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_is_complete(name: str) -> None:
    entry = zoo.entry(name)
    assert entry["name"] == name
    assert set(entry["paper"]) == {"title", "authors", "year", "arxiv"}
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry["paper"]["arxiv"])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry["source"]["repository"])
    assert re.fullmatch(r"[0-9a-f]{40}", entry["source"]["commit"])
    assert entry["source"]["path"].endswith("genotypes.py")
    genotype = zoo.load(name)
    assert genotype.to_json() == entry["genotype"]
    assert set(genotype.cells) == {"normal", "reduce"}


@pytest.mark.parametrize("name", zoo.names())
def test_a_reported_number_has_a_source(name: str) -> None:
    reported = zoo.entry(name)["reported"]
    stated_in = reported.pop("stated_in")
    given = {key for key, value in reported.items() if value is not None}
    assert bool(given) == bool(stated_in)
    assert "memory" not in json.dumps(zoo.entry(name))
    if reported["cifar10_test_error"] is not None:
        assert 2 < reported["cifar10_test_error"] < 4
        assert 2 < reported["params_M"] < 5
    if reported["imagenet_top1_error"] is not None:
        assert 20 < reported["imagenet_top1_error"] < 30


@pytest.mark.parametrize("name", zoo.names())
def test_computed_and_reported_parameters_agree(name: str) -> None:
    entry = zoo.entry(name)
    cifar10, reported = entry["computed"]["cifar10"], entry["reported"]["params_M"]
    assert cifar10["parameters"] < cifar10["parameters_with_auxiliary"]
    # Ten times as many classes add weights to the last layer only: C channels and a bias.
    classes = entry["computed"]["cifar100"]["parameters"] - cifar10["parameters"]
    width = 36 * 4 * len(zoo.load(name).cells["normal"].concat)
    assert classes == 90 * (width + 1)
    if reported is not None and name != "NASNet_A":  # reported for its own skeleton
        counts = [
            cifar10["parameters"] / 1e6,
            cifar10["parameters_with_auxiliary"] / 1e6,
        ]
        assert min(abs(count - reported) for count in counts) < 0.25


def test_published_numbers_of_darts() -> None:
    first, second = (zoo.entry(name) for name in ("DARTS_V1", "DARTS_V2"))
    assert first["reported"]["cifar10_test_error"] == 3.00
    assert second["reported"]["cifar10_test_error"] == 2.76
    assert first["computed"]["cifar10"]["parameters"] == 3_169_414
    assert second["computed"]["cifar10"]["parameters"] == 3_349_342
    assert second["computed"]["imagenet"]["parameters"] == 4_718_752


def test_names_are_found_in_any_case() -> None:
    assert zoo.has("darts_v2")
    assert zoo.entry("darts_V2")["name"] == "DARTS_V2"
    assert zoo.load("drnas_cifar10") == zoo.load("DrNAS_CIFAR10")


@pytest.mark.parametrize(
    "name", ["DARTS_V3", "", "../errors", "__init__", "DARTS_V2.json"]
)
def test_an_unknown_name_lists_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="unknown zoo genotype .*DARTS_V2") as caught:
        zoo.entry(name)
    assert "\n" not in str(caught.value)
    assert not zoo.has(name)


def test_an_entry_is_a_copy() -> None:
    zoo.entry("DARTS_V2")["genotype"]["cells"].clear()
    assert zoo.load("DARTS_V2").cells


def test_entries_agree_with_the_reference_data(shared: Path) -> None:
    collected = json.loads((shared / "genotypes.json").read_text())["genotypes"]
    facts = {item["name"]: item for item in collected}
    counts = json.loads((shared / "reference_counts.json").read_text())["derived"]
    settings = {
        "cifar10": "cifar10_C36_L20",
        "cifar100": "cifar100_C36_L20",
        "imagenet": "imagenet_C48_L14",
    }
    checked = 0
    for name in zoo.names():
        other = REFERENCE_NAMES.get(name, name)
        if other not in facts:
            continue
        checked += 1
        entry, fact = zoo.entry(name), facts[other]
        assert flat(zoo.load(name)) == fact["genotype"]
        assert entry["source"]["commit"] == fact["source_commit"]
        for setting, key in settings.items():
            computed, count = entry["computed"][setting], counts[other][key]
            assert computed["parameters"] == count["params_no_aux"]
            assert computed["parameters_with_auxiliary"] == count["params_with_aux"]
            assert computed["multiply_adds"] == count["macs"]
    assert checked == len(facts) == 20


def flat(genotype: Genotype) -> dict:
    """The collected data's form: a flat list of edges a cell, and its concat."""
    result: dict = {}
    for kind, cell in genotype.cells.items():
        result[kind] = [list(edge) for node in cell.nodes for edge in node]
        result[f"{kind}_concat"] = list(cell.concat)
    return result
