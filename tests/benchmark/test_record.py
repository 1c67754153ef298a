"""Ratios, file names and the table, from figures given by hand."""

import json
from typing import Any

from darts_jax.benchmark.record import file_name, make_record, ratios_against, table
from darts_jax.benchmark.sizes import Variant


def _ours(median: float, peak: int) -> dict[str, Any]:
    start_up = {"kernels_s": 1.0, "init_s": 5.0, "trace_s": 2.0, "compile_s": 30.0}
    warm = {"kernels_s": 0.0, "init_s": 1.0, "trace_s": 2.0, "compile_s": 3.0}
    return {
        "cold": start_up | {"peak_resident_bytes": 2 * peak},
        "median_s": median,
        "min_s": median,
        "images_per_second": 1 / median,
        "peak_resident_bytes": peak,
        "share_of_floor": 0.5,
    } | warm


def _theirs(median: float, peak: int) -> dict[str, Any]:
    return {
        "median_s": median,
        "min_s": median,
        "images_per_second": 1 / median,
        "peak_resident_bytes": peak,
    }


MEASURED: dict[str, Any] = {
    "search_step_first_order": {"jax": _ours(1.0, 30), "torch": _theirs(5.0, 20)},
    "search_step_finite_difference": {"jax": _ours(2.0, 40), "torch": _theirs(12, 20)},
    "search_step_unrolled": {"jax": _ours(3.0, 90), "torch": _theirs(12.0, 20)},
}
HARDWARE = {"device_kind": "NVIDIA H100 80GB HBM3", "versions": {"torch": "2"}}


def _record(**extra: Any) -> dict[str, Any]:
    workloads = {name: entry | extra for name, entry in MEASURED.items()}
    command = "darts-jax benchmark"
    return make_record("tiny", workloads, HARDWARE, ["torch", *extra], command)


def test_ratios_of_time_and_memory() -> None:
    found = ratios_against("torch", MEASURED)
    assert found["ratios"] == {
        "search_step_first_order": 5.0,
        "search_step_second_order": 6.0,
        "search_step_exact_second_order": 4.0,
        "retrain_step": None,
        "weights_step": None,
        "peak_memory": 2.0,  # the largest, without the exact gradient's 4.5
    }
    assert found["memory_ratios"] == {
        "search_step_first_order": 1.5,
        "search_step_second_order": 2.0,
        "search_step_exact_second_order": 4.5,
    }
    assert found["cold_memory_ratios"]["search_step_first_order"] == 3.0


def test_the_memory_of_a_device_counts_where_it_is_known() -> None:
    ours = _ours(1.0, 30) | {"peak_device_bytes": 5}
    theirs = _theirs(1.0, 30) | {"peak_device_bytes": 10}
    entry = {"weights_step": {"jax": ours, "torch": theirs}}
    assert ratios_against("torch", entry)["ratios"]["peak_memory"] == 0.5


def test_a_record_is_json_with_its_headlines() -> None:
    record = json.loads(json.dumps(_record()))
    assert record["ratios"]["search_step_first_order"] == 5.0
    assert record["compile_cold_s"] == 33.0
    assert record["compile_warm_s"] == 5.0
    assert record["versions"] == {"torch": "2"}
    assert record["size"]["name"] == "tiny"
    assert record["size"]["retrain"]["genotype"] == "DARTS_V2"
    assert file_name("tiny", HARDWARE) == "tiny_nvidia-h100-80gb-hbm3.json"
    chosen = HARDWARE | Variant("merged", "bfloat16", 4)._asdict()
    name = "tiny_merged_bfloat16_4seeds_nvidia-h100-80gb-hbm3.json"
    assert file_name("tiny", chosen) == name


def test_a_failed_variant_stands_in_record_and_table() -> None:
    record = _record(torch_compile={"failed": "no compiler"})
    ratios = record["baselines"]["torch_compile"]["ratios"]
    assert set(ratios.values()) == {None}
    assert record["ratios"]["search_step_first_order"] == 5.0
    assert any("torch_compile" in row and "failed" in row for row in table(record))


def test_the_table_has_every_figure() -> None:
    lines = table(_record())
    text = "\n".join(lines)
    assert "search_step_first_order" in text
    assert "jax, cold" in text
    assert any(
        line.split()[0] == "search_step_second_order" and line.split()[1] == "6.00"
        for line in lines
        if line.startswith("  ")
    )
