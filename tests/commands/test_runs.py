"""From search to report by way of the commands, on data that need no download."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from darts_jax.__main__ import main
from darts_jax.genotype import Genotype, load, save
from darts_jax.spaces import SPACES, check_genotype, random_genotype
from darts_jax.training import retrain as retraining
from darts_jax.training import search as searching
from darts_jax.training import seeds, setup

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    "--config.model.num_nodes=1",
    "--config.model.num_cells=3",
    "--config.model.channels=2",
    "--noconfig.progress",
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("search_digits:tiny", workdir, *options) -> (status, stdout, stderr)`."""

    def call(config: str, workdir: Path, *options: str) -> tuple[int, str, str]:
        name, _, arg = config.partition(":")
        words = [name.partition("_")[0], f"--config={CONFIGS / name}.py:{arg}"]
        capsys.readouterr()
        status = main([*words, f"--workdir={workdir}", *options])
        return (status, *capsys.readouterr())

    return call


def read(workdir: Path, name: str) -> Any:
    text = (workdir / name).read_text()
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_search_retrain_evaluate_report(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search, retrain = tmp_path / "s0", tmp_path / "t0"
    status, out, _ = run("search_digits:tiny", search, *SMALL)
    assert status == 0
    genotype = load(search / "genotype.json")
    check_genotype(
        genotype,
        SPACES["darts"](
            num_nodes=1, primitives=("none", "skip_connect", "sep_conv_3x3")
        ),
    )
    result = read(search, "result.json")
    assert Genotype.from_json(result["genotype"]) == genotype
    assert f"{result['valid_accuracy']:.4f}" in out and str(search) in out
    rows = read(search, "genotypes.jsonl")
    assert Genotype.from_json(rows[-1]["genotype"]) == genotype
    assert rows[-1]["primitives"] == ["none", "skip_connect", "sep_conv_3x3"]
    for kind in ("normal", "reduce"):
        alphas = np.asarray(rows[-1]["alphas"][kind])
        powers = np.exp(alphas - alphas.max(-1, keepdims=True))
        weights = powers / powers.sum(-1, keepdims=True)
        np.testing.assert_allclose(rows[-1]["edge_weights"][kind], weights, rtol=1e-5)
        entropy = -(weights * np.log(weights)).sum(-1).mean()
        metrics = read(search, "metrics.jsonl")[-1]
        assert metrics[f"entropy_{kind}"] == pytest.approx(entropy, rel=1e-5)

    again = snapshot(search)
    status, repeated, _ = run("search_digits:tiny", search, *SMALL)
    assert (status, repeated) == (0, out)
    unchanged = snapshot(search)
    again.pop("manifest.json"), unchanged.pop("manifest.json")  # it counts restarts
    assert unchanged == again

    options = (*SMALL, f"--config.genotype={search / 'genotype.json'}")
    # 30 test images are no whole number of batches of 8.
    options += ("--config.dataset.test_limit=30", "--config.evaluate_every=1")
    options += ("--config.model.num_cells=2",)
    status, out, _ = run("retrain_digits:tiny", retrain, *options)
    assert status == 0
    assert load(retrain / "genotype.json") == genotype
    result = read(retrain, "result.json")
    rows = read(retrain, "metrics.jsonl")
    for name in ("test_accuracy", "test_top5_accuracy", "test_loss"):
        assert result[name] == rows[-1][name]
    assert (result["test_accuracy"] * 30) == pytest.approx(
        round(result["test_accuracy"] * 30), abs=1e-5
    )
    assert f"{result['test_accuracy']:.4f}" in out

    (search / "genotype.json").unlink()  # the run keeps its own
    found = retraining.evaluate_run(retrain, _config(retrain))
    assert found == {
        **{name: result[name] for name in found if name.startswith("test_")},
        "step": rows[-1]["step"],
        "epoch": 2,
    }
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={retrain}"]) == 0
    assert f"test accuracy {result['test_accuracy']:.4f}" in capsys.readouterr().out

    assert main(["report", str(search), str(retrain)]) == 0
    page = (search / "report.html").read_text()
    assert "s0" in page and "t0" in page
    assert main(["evaluate", f"--workdir={search}"]) == 2
    assert "holds a search run" in capsys.readouterr().err


def _config(workdir: Path) -> Any:
    from ml_collections import FrozenConfigDict

    return FrozenConfigDict(read(workdir, "config.json"))


def test_changed_config_is_refused(run: Run, tmp_path: Path) -> None:
    """Nothing of the run is touched, the line names every difference."""
    run("retrain_digits:tiny", tmp_path / "r", "--config.genotype=nowhere.json")
    # Only a run with something in it is bound to its config.
    (tmp_path / "r" / "metrics.jsonl").write_text('{"epoch": 0, "step": 1}\n')
    before = snapshot(tmp_path / "r")
    status, out, err = run(
        "retrain_digits:tiny",
        tmp_path / "r",
        "--config.genotype=x.json",
        "--config.seed=3",
    )
    assert (status, out) == (2, "")
    assert "seed 0 -> 3" in err and "'nowhere.json' -> 'x.json'" in err
    assert err.count("\n") == 1
    assert snapshot(tmp_path / "r") == before


def test_zoo_name_with_two_cells(run: Run, tmp_path: Path) -> None:
    options = [word for word in SMALL if "num_nodes" not in word]
    options += ["--config.model.num_cells=2", "--config.num_epochs=1"]
    status, out, _ = run(
        "retrain_digits:tiny", tmp_path, "--config.genotype=darts_v2", *options
    )
    assert status == 0
    assert out.startswith("darts_v2: test accuracy ")
    assert (
        load(tmp_path / "genotype.json").cells["reduce"].nodes[0][0][0]
        == "max_pool_3x3"
    )


def test_random_genotypes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds, two cells; what draws them is not the seed of the training."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds, "run_epochs", stop)
    found = {}
    for seed, genotype_seed in ((0, 0), (1, 0), (0, 1)):
        workdir = tmp_path / f"{seed}-{genotype_seed}"
        options = ("--config.genotype=random", f"--config.seed={seed}")
        options += (
            f"--config.genotype_seed={genotype_seed}",
            "--config.dataset.limit=16",
        )
        options += ("--config.model.num_cells=1", "--config.model.channels=1")
        assert run("retrain_digits:tiny", workdir, *options)[0] == 130
        found[seed, genotype_seed] = load(workdir / "genotype.json")
    assert found[0, 0] == found[1, 0] != found[0, 1]


def test_drop_path_rises_linearly_by_epoch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def spy(model: Any, optimizer: Any, **options: Any) -> Any:
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(retraining, "make_retrain_step", spy)
    options = ("--config.genotype=random", "--config.num_epochs=5")
    options += ("--config.drop_path=0.2", "--config.auxiliary_weight=0.3")
    options += ("--config.label_smoothing=0.1", "--config.dataset.limit=24")
    assert run("retrain_digits:tiny", tmp_path / "r", *options)[0] == 130
    rates = [
        float(given["drop_path"](np.int32(step))) for step in range(15)
    ]  # 3 an epoch
    assert rates == pytest.approx([0.2 * (step // 3) / 5 for step in range(15)])
    assert (given["auxiliary_weight"], given["label_smoothing"]) == (0.3, 0.1)
    run("retrain_digits:tiny", tmp_path / "s", *options, "--config.drop_path=0")
    assert given["drop_path"] is None


class Forbidden:
    """The test split of a search: whatever touches it fails."""

    def _fail(self, *args: Any) -> Any:
        raise AssertionError("the test split was touched")

    __len__ = __getitem__ = __array__ = __iter__ = __getattr__ = _fail  # type: ignore


def test_search_learns_without_the_test_split(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 classes: chance is 0.1. One program serves all steps and epochs."""
    read_dataset, traces = setup.read_dataset, []

    def without_test(config: Any) -> Any:
        return read_dataset(config)._replace(
            test_images=Forbidden(), test_labels=Forbidden()
        )

    make_search_step = searching.make_search_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        step = make_search_step(*args, **kwargs)

        def search_step(*arguments: Any) -> Any:
            traces.append(1)
            return step(*arguments)

        return search_step

    monkeypatch.setattr(setup, "read_dataset", without_test)
    monkeypatch.setattr(searching, "make_search_step", counted)
    options = ("--config.dataset.limit=800", "--config.num_epochs=8")
    options += ("--config.model.num_cells=2",)
    options += ("--config.alphas.learning_rate=0.01", "--config.evaluate_every=4")
    assert run("search_digits:tiny", tmp_path, *SMALL, *options)[0] == 0
    assert traces == [1]
    rows = read(tmp_path, "metrics.jsonl")
    assert rows[0]["train_accuracy"] < 0.3
    assert rows[-1]["train_accuracy"] > 0.4
    assert rows[-1]["valid_accuracy"] > 0.4
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5
    assert read(tmp_path, "result.json")["valid_accuracy"] > 0.4
    assert [row["epoch"] for row in rows if "supernet_accuracy" in row] == [3, 7]
    first, last = read(tmp_path, "genotypes.jsonl")[:: len(rows) - 1]
    moved = np.abs(np.subtract(last["alphas"]["reduce"], first["alphas"]["reduce"]))
    assert moved.max() > 0.1


def test_nas_bench_201_weights_first(run: Run, tmp_path: Path) -> None:
    primitives = ("none", "skip_connect", "nor_conv_1x1")
    options = ("--config.dataset.name=synthetic", "--config.dataset.image_size=8")
    options += ("--config.model.num_nodes=2", "--config.model.channels=2")
    options += ("--config.num_epochs=1", "--noconfig.progress")
    options += (f"--config.model.primitives={primitives}",)
    assert run("search_nb201:tiny", tmp_path, *options)[0] == 0
    genotype = load(tmp_path / "genotype.json")
    space = SPACES["nas_bench_201"](num_nodes=2, primitives=primitives)
    check_genotype(genotype, space)
    assert set(read(tmp_path, "metrics.jsonl")[0]) >= {"entropy_cell", "skips_cell"}


def test_folder_of_images(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARTS_JAX_DATA", str(tmp_path / "prepared"))
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    options = ("--config.dataset.name=folder", "--config.num_epochs=1")
    options += (f"--config.dataset.path={tmp_path / 'images'}", "--config.preset=paper")
    options += ("--config.model.num_cells=1",)
    status, _, err = run("search_cifar10:tiny", tmp_path / "r", *SMALL, *options)
    assert status == 0, err
    alphas = read(tmp_path / "r", "genotypes.jsonl")[0]["alphas"]
    # They start at 0 in the paper; two steps of Adam leave them near.
    assert 0 < np.abs(alphas["reduce"]).max() < 0.01
    assert read(tmp_path / "r", "config.json")["batch_norm"]["evaluation"] == "batch"


@pytest.mark.parametrize("config", ["search_digits:tiny", "retrain_digits:tiny"])
def test_batch_larger_than_the_data(config: str, run: Run, tmp_path: Path) -> None:
    options = ["--config.batch_size=99"]
    options += ["--config.genotype=random"] * config.startswith("retrain")
    status, out, err = run(config, tmp_path / "run", *options)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"darts-jax: error: config\.batch_size=99 is more .*\n", err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.genotype=DARTS_V9"], "did you mean 'DARTS_V2'"),
        (
            ["--config.genotype=DARTS_V2", "--config.model.auxiliary=True"],
            "auxiliary=False",
        ),
        (["--config.genotype=random", "--config.model.primitives=('none',)"], "none"),
    ],
)
def test_unusable_genotype(
    options: list[str], message: str, run: Run, tmp_path: Path
) -> None:
    status, out, err = run("retrain_digits:tiny", tmp_path / "run", *options)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err


def _write_images(root: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}_{i}.png")


def test_data_that_moved_and_data_that_changed(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DARTS_JAX_DATA", str(tmp_path / "prepared"))
    images, moved, workdir = (tmp_path / name for name in ("images", "moved", "r"))
    _write_images(images, 12)
    own = ("--config.dataset.name=folder", "--config.dataset.limit=0")
    own += ("--config.dataset.test_limit=0", "--config.genotype=random")
    options = (*SMALL, *own, "--config.num_epochs=1")
    there = f"--config.dataset.path={images}"
    assert run("retrain_digits:tiny", workdir, *options, there)[0] == 0
    accuracy = f"test accuracy {read(workdir, 'result.json')['test_accuracy']:.4f}"

    images.rename(moved)
    # As another machine would: with other devices than the run was made on.
    config = read(workdir, "config.json")
    config["parallel"]["devices"] = 8
    (workdir / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", f"--workdir={workdir}"]) == 2
    assert "does not exist" in capsys.readouterr().err
    given = f"--config.dataset.path={moved}"
    assert main(["evaluate", f"--workdir={workdir}", given]) == 0
    assert accuracy in capsys.readouterr().out
    assert main(["evaluate", f"--workdir={workdir}", "--config.seed=3"]) == 2
    assert "config field of an evaluation 'seed'" in capsys.readouterr().err

    # The same command on the data that moved: still the same run, which knows their place.
    assert run("retrain_digits:tiny", workdir, *options, there)[0] == 0
    status, out, _ = run("retrain_digits:tiny", workdir, *options, given)
    assert status == 0 and accuracy in out
    assert read(workdir, "config.json")["dataset"]["path"] == str(moved)
    # On other data it is none, finished as it is, and its record stays.
    for place in (tmp_path / "nowhere", tmp_path / "others"):
        before = (workdir / "config.json").read_bytes()
        other = f"--config.dataset.path={place}"
        status, out, err = run("retrain_digits:tiny", workdir, *options, other)
        assert (status, out) == (2, "") and err.count("error: ") == 1
        assert (workdir / "config.json").read_bytes() == before
        _write_images(tmp_path / "others", 13)
    assert "was started on other data" in err

    _write_images(moved, 5)
    assert main(["evaluate", f"--workdir={workdir}", given]) == 2
    assert "was started on other data" in capsys.readouterr().err
    (workdir / "result.json").unlink()
    status, _, err = run("retrain_digits:tiny", workdir, *options, given)
    assert status == 2 and "training images" in err and err.count("\n") == 1


def test_another_genotype_under_the_same_name_is_refused(
    run: Run, tmp_path: Path
) -> None:
    named = tmp_path / "best.json"
    options = (*SMALL, f"--config.genotype={named}", "--config.num_epochs=1")
    space = SPACES["darts"](num_nodes=1)
    first, second = (
        random_genotype(space, np.random.default_rng(seed)) for seed in (0, 1)
    )
    assert first != second
    save(first, named)
    status, out, _ = run("retrain_digits:tiny", tmp_path / "r", *options)
    assert status == 0
    save(second, named)
    status, _, err = run("retrain_digits:tiny", tmp_path / "r", *options)
    assert status == 2 and "was started with another genotype" in err
    named.unlink()
    assert run("retrain_digits:tiny", tmp_path / "r", *options)[:2] == (0, out)


def test_what_was_lost_of_a_complete_run_is_made_again(
    run: Run, tmp_path: Path
) -> None:
    options = (*SMALL, "--config.genotype=random", "--config.num_epochs=1")
    status, out, _ = run("retrain_digits:tiny", tmp_path, *options)
    for name in ("result.json", "metrics.jsonl", "timing.jsonl"):
        (tmp_path / name).unlink()
    assert (
        run("retrain_digits:tiny", tmp_path, *options)[:2] == (status, out) == (0, out)
    )


def test_nothing_to_evaluate(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--workdir={tmp_path / 'gone'}"]) == 2
    assert "no run in" in capsys.readouterr().err
    run("retrain_digits:tiny", tmp_path / "r", "--config.genotype=nowhere.json")
    assert main(["evaluate", f"--workdir={tmp_path / 'r'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def run_small_search(run: Run, workdir: Path, *options: str) -> list[dict[str, Any]]:
    assert (
        run("search_digits:tiny", workdir, *SMALL, "--config.num_epochs=1", *options)[0]
        == 0
    )
    return read(workdir, "genotypes.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["code", "paper"])
@pytest.mark.parametrize("hypergradient", ["unrolled", "finite_difference"])
def test_second_order_runs(
    hypergradient: str, preset: str, run: Run, tmp_path: Path
) -> None:
    words = [f"--config.hypergradient={hypergradient}", f"--config.preset={preset}"]
    rows = run_small_search(run, tmp_path, *words, "--config.batch_size=4")
    assert all(np.isfinite(values).all() for values in rows[0]["alphas"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_every_space_runs(name: str, run: Run, tmp_path: Path) -> None:
    nodes = 4 if name == "darts_s1" else 2
    words = [f"--config.space={name}", f"--config.model.num_nodes={nodes}"]
    words += ["--config.model.primitives=()", "--config.dataset.name=synthetic"]
    words += ["--config.dataset.image_size=8", "--config.num_epochs=1"]
    assert run("search_digits:tiny", tmp_path / "s", *SMALL, *words)[0] == 0
    genotype = f"--config.genotype={tmp_path / 's' / 'genotype.json'}"
    words += ["--config.model.num_cells=2"]
    assert run("retrain_digits:tiny", tmp_path / "t", *SMALL, *words, genotype)[0] == 0
    jax.clear_caches()
