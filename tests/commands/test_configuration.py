"""Configs: every file loads, the preset resolves, every mistake is one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from darts_jax.commands import configuration, flags
from darts_jax.commands.checks import (
    CHOICES,
    CONDITIONS,
    READ_BY,
    check_names,
    check_values,
)
from darts_jax.commands.configuration import PRESETS, load, load_file, resolve_preset
from darts_jax.errors import UserError
from darts_jax.training.records import flatten

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(p for p in CONFIGS.glob("*.py") if p.stem != "base")


def resolved(path: Path, arg: str = "") -> dict[str, Any]:
    config = load_file(path, arg)
    resolve_preset(config)
    return flatten(config.to_dict())


def load_search(*words: str, file: str = "search_digits.py") -> Any:
    return load([f"--config={CONFIGS / file}", "--workdir=runs/x", *words], "search")[0]


@pytest.mark.parametrize("arg", ["", "tiny"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_config_is_complete_and_valid(path: Path, arg: str) -> None:
    flat = resolved(path, arg)
    assert set(flat) == set(resolved(CONFIGS / "base.py"))
    assert [field for field, value in flat.items() if value is None] == []
    check_values(flat)
    check_names(flat)


def test_every_check_is_of_a_field_that_exists() -> None:
    fields = set(resolved(CONFIGS / "base.py"))
    assert {*CONDITIONS, *CHOICES} <= fields
    for name in {name for names in READ_BY.values() for name in names}:
        assert any(field.startswith(name) for field in fields), name


def test_published_settings() -> None:
    search = resolved(CONFIGS / "search_cifar10.py")
    assert (search["batch_size"], search["num_epochs"]) == (64, 50)
    assert (search["model.channels"], search["model.num_cells"]) == (16, 8)
    retrain = resolved(CONFIGS / "retrain_cifar10.py")
    assert (retrain["batch_size"], retrain["num_epochs"]) == (96, 600)
    assert (retrain["model.channels"], retrain["model.num_cells"]) == (36, 20)
    assert (retrain["drop_path"], retrain["augmentation.cutout"]) == (0.2, 16)
    assert retrain["weights.learning_rate_min"] == 0
    second = resolved(CONFIGS / "search_cifar10.py", "second_order")
    assert second["hypergradient"] == "finite_difference"


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_resolved_after_the_overrides(preset: str) -> None:
    config = load_search(f"--config.preset={preset}", "--config.alphas.init_scale=0.5")
    flat = flatten(config.to_dict())
    wanted = {**PRESETS[preset], "alphas.init_scale": 0.5}
    assert {field: flat[field] for field in wanted} == wanted


def test_overrides_have_their_fields_types() -> None:
    config = load_search(
        "--config.weights.learning_rate=1",
        "--config.model.primitives=('none', 'skip_connect')",
        "--noconfig.progress",
        "--config.dataset.path",
        "/data/x=y",
        "--config.seed=4",
        "--config.seed=5",
    )
    assert config.weights.learning_rate == 1.0
    assert isinstance(config.weights.learning_rate, float)
    assert config.model.primitives == ("none", "skip_connect")
    assert config.progress is False
    assert config.dataset.path == "/data/x=y"
    assert config.seed == 5


FORK = """
import base

def get_config():
    config = base.get_config()
    {line}
    return config
"""


def _fork(tmp_path: Path, line: str) -> Path:
    shutil.copy(CONFIGS / "base.py", tmp_path)
    path = tmp_path / "fork.py"
    path.write_text(FORK.format(line=line))
    return path


def test_a_misspelt_field_of_a_file_is_named(tmp_path: Path) -> None:
    assert load_file(_fork(tmp_path, "config.model.channels = 4")).model.channels == 4
    for line in ("config.model.chanels = 4", "config.hypergradiant = 'unrolled'"):
        with pytest.raises(
            UserError, match=r"fork.py, line 6: .*Did you mean"
        ) as error:
            load_file(_fork(tmp_path, line))
        assert "\n" not in str(error.value)


def test_a_config_without_the_fields_of_base(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'seed': 1})\n"
    )
    with pytest.raises(UserError, match=r"no field .* start from base.get_config"):
        load([f"--config={path}", "--workdir=r"], "search")


def test_the_last_seed_is_within_bounds() -> None:
    load_search("--config.seed=2147483646", "--config.num_seeds=2")
    with pytest.raises(UserError, match="leads to seed 2147483648"):
        load_search("--config.seed=2147483647", "--config.num_seeds=2")


def test_a_finite_difference_needs_more_than_bfloat16() -> None:
    choice = "--config.hypergradient=finite_difference"
    with pytest.raises(UserError, match="choose hypergradient='unrolled'"):
        load_search(choice, "--config.precision=bfloat16")
    assert load_search(choice).precision == "float32"
    exact = load_search(
        "--config.hypergradient=unrolled", "--config.precision=bfloat16"
    )
    assert exact.hypergradient == "unrolled"


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_search().seed = 3


def test_further_flags() -> None:
    words = [f"--config={CONFIGS / 'search_digits.py'}", "--workdir=runs/x"]
    further = {"dry_run": False, "output": ""}
    _, workdir, values = load([*words, "--dry_run", "--output", "a"], "search", further)
    assert workdir == Path("runs/x")
    assert values == {"dry_run": True, "output": "a"}
    assert flags.parse(["--nodry_run"], {"dry_run": True}).flags["dry_run"] is False


def test_two_folders_with_a_base_do_not_mix(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "search_digits.py", tmp_path)
    text = (CONFIGS / "base.py").read_text()
    (tmp_path / "base.py").write_text(
        text.replace("config.seed = 0", "config.seed = 9")
    )
    assert load_file(tmp_path / "search_digits.py").seed == 9
    assert load_file(CONFIGS / "search_digits.py").seed == 0
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []  # no __pycache__


BASE = "from ml_collections import ConfigDict\ndef get_config(arg=''):\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"mine\.py, line 1: syntax error"),
        (BASE + "    c = ConfigDict({'a': 1})\n    c.a = 'x'\n", r"line 4: TypeError"),
        ("import no_such_module_at_all\n", r"line 1: ModuleNotFoundError"),
        ("x = 1\n", r"defines no get_config"),
        (BASE + "    return 3\n", r"returned no ConfigDict but 3"),
        ("def get_config():\n    pass\n", r"returned no ConfigDict but None"),
    ],
)
def test_broken_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_file(path)
    assert "\n" not in str(error.value)


def test_section_is_named_with_its_fields() -> None:
    with pytest.raises(
        UserError, match=r"config\.weights is a section; .*weights\.clip"
    ):
        load_search("--config.weights=3")


def test_misspelt_field_of_a_section_lists_the_section() -> None:
    with pytest.raises(UserError, match=r"choices: finite_difference\.radius"):
        load_search("--config.finite_difference.zzz=3")


def test_workdir_is_not_created_by_loading(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert configuration.check_workdir(str(path), "search") == path
    assert list(tmp_path.iterdir()) == []
