"""The report on fabricated run directories: numbers, sections, escaping, damaged files."""

import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from darts_jax import zoo
from darts_jax.errors import UserError
from darts_jax.genotype import parse_text
from darts_jax.report import summary_lines, write_report
from darts_jax.report.runs import number, read_run, statistic
from darts_jax.report.summary import accuracy_text, difference_text

SVG = "{http://www.w3.org/2000/svg}"
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")  # space tiny
GENOTYPE = parse_text(
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('sep_conv_3x3', 2), "
    "('max_pool_3x3', 0)], normal_concat=[2, 3], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3])"
).to_json()
EVIL = "<script>alert('x')</script>\"&\x00\ud800"


def put(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def put_rows(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, command, accuracy=None, epochs=3, **config):
    """Writes a run directory; without an accuracy the run is unfinished."""
    folder.mkdir(parents=True)
    search = command == "search"
    config = {
        "seed": 0,
        "space": "tiny",
        "one_shot": "darts",
        "num_epochs": 3,
        "genotype": "",
        "dataset": {"name": "digits", "limit": 0},
        "model": {"num_nodes": 2, "primitives": []},
    } | config
    put(folder, "config.json", config)
    put(
        folder,
        "manifest.json",
        {
            "command": command,
            "argv": ["darts-jax", command],
            "versions": {"jax": "0.10.2"},
            "devices": ["one particular device"],
        },
    )
    split = "valid" if search else "test"
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch, "train_loss": 2.0 - epoch / 4, "train_accuracy": 0.5}
        row |= {f"{split}_loss": 2.1 - epoch / 4, f"{split}_accuracy": 0.4}
        if search:
            row |= {"entropy_normal": 1.2, "entropy_reduce": 1.1}
            row |= {"skips_normal": 1, "skips_reduce": epoch}
        rows.append(row)
    put_rows(folder, "metrics.jsonl", rows)
    seconds = [
        {"epoch": e, "seconds": 2.0, "images_per_second": 10.0} for e in range(epochs)
    ]
    put_rows(folder, "timing.jsonl", seconds)
    put(folder, "genotype.json", GENOTYPE)
    if search:
        uniform = np.full((5, 4), 0.25).tolist()
        kinds = {"normal": uniform, "reduce": uniform}
        put_rows(
            folder,
            "genotypes.jsonl",
            [
                {"epoch": e, "genotype": GENOTYPE, "edge_weights": kinds}
                for e in range(epochs)
            ],
        )
    if accuracy is not None:
        result = {"command": command, "genotype": GENOTYPE, "seconds": 6.0}
        put(folder, "result.json", result | {f"{split}_accuracy": accuracy})
    return folder


@pytest.fixture
def runs(tmp_path):
    derived = {"genotype": "s0/genotype.json"}
    random = {"genotype": "random"}
    return [
        make_run(tmp_path / "s0", "search", 0.8),
        make_run(tmp_path / "t0", "retrain", 0.96, **derived),
        make_run(tmp_path / "t1", "retrain", 0.98, seed=1, **derived),
        make_run(tmp_path / "r0", "retrain", 0.90, genotype_seed=0, **random),
        make_run(tmp_path / "r1", "retrain", 0.94, genotype_seed=1, **random),
        make_run(tmp_path / "r2", "retrain", 0.95, genotype_seed=2, **random),
    ]


def test_every_section_and_picture_is_there(runs):
    summary = write_report(runs)
    page = summary.path.read_text()
    assert summary.path == runs[0] / "report.html"
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert sections == [
        *("Genotype", "Results", "Edge weights", "Curves", "Time"),
        *("Configuration", "Versions and hardware"),
    ]
    for text in ("digraph genotype", "flowchart LR", "one particular device", "0.10.2"):
        assert text in page
    assert {path.stem for path in summary.plots} >= {
        *("genotype_normal", "genotype_reduce", "search_loss", "search_accuracy"),
        *("edge_weights_normal", "heat_map_reduce", "entropy", "skip_connections"),
        *("retrain_loss", "retrain_accuracy", "time"),
    }
    for path in summary.plots:
        assert path.parent == runs[0] / "plots"
        ElementTree.fromstring(path.read_text())


def test_a_page_stands_alone(runs):
    page = write_report(runs).path.read_text()
    addresses = set(re.findall(r"https?://[^\"' <]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|src=", page)


def test_numbers_of_the_groups(runs):
    summary = write_report(runs)
    assert (summary.searched.n, summary.searched.mean, summary.searched.std) == (
        1,
        0.8,
        None,
    )
    # 96 and 98: mean 97, deviations of 1, so the sample variance is 2 / 1.
    assert summary.derived.mean == pytest.approx(0.97)
    assert summary.derived.std == pytest.approx(0.02**0.5 * 0.1)
    # 90, 94, 95: mean 93, deviations -3, 1, 2, so the sample variance is 14 / 2.
    assert summary.random.mean == pytest.approx(0.93)
    assert summary.random.std == pytest.approx(7**0.5 / 100)
    page = summary.path.read_text()
    assert "97.00 \u00b1 1.41 % (n = 2)" in page
    assert "93.00 \u00b1 2.65 % (n = 3)" in page
    # sqrt(2 / 2 + 7 / 3) = 1.826
    assert "+4.00 points (standard error 1.83)" in page
    assert "80.00 % (n = 1)" in page and "80.00 \u00b1" not in page


def test_lines_for_the_terminal(runs):
    lines = summary_lines(write_report(runs))
    text = "\n".join(lines)
    assert "sep_conv_3x3" in text
    assert re.search(
        r"test accuracy, derived genotypes +97.00 \u00b1 1.41 % \(n = 2\)", text
    )
    assert re.search(
        r"test accuracy, random genotypes +93.00 \u00b1 2.65 % \(n = 3\)", text
    )
    assert lines[-1] == f"report: {runs[0] / 'report.html'}"
    assert not any(line.startswith("note") for line in lines)


def test_statistic_leaves_out_what_is_not_finite():
    values = [1.0, None, 2.0, float("nan"), 4.0]
    found = statistic(values)
    assert found.n == 3 and found.std == pytest.approx(statistics.stdev([1, 2, 4]))
    assert statistic([None]) is None
    assert [number(v) for v in (True, "1", float("inf"), 10**400, 3)] == [None] * 4 + [
        3.0
    ]
    assert accuracy_text(statistic([0.5])) == "50.00 % (n = 1)"
    assert difference_text(statistic([0.5]), statistic([0.6, 0.7])) == "-15.00 points"


def test_nothing_of_a_run_becomes_markup(tmp_path):
    run = make_run(
        tmp_path / "<b>bold", "retrain", 0.5, genotype=EVIL, dataset={"name": EVIL}
    )
    put(run, "manifest.json", {"command": "retrain", "argv": [EVIL], EVIL: EVIL})
    result = {"test_accuracy": 0.5, "genotype_name": EVIL, "genotype": {"space": EVIL}}
    put(run, "result.json", result)
    other = make_run(tmp_path / "s0", "search", 0.5, space=EVIL)
    odd = {f"entropy_{EVIL}": 1.0, "skips_../../x": 2, "epoch": 3}
    put_rows(other, "metrics.jsonl", [odd])
    weights = {"../../<i>": [[0.5, 0.5]] * 2}
    rows = [{"epoch": 0, "genotype": {EVIL: 1}, "edge_weights": weights}]
    put_rows(other, "genotypes.jsonl", rows)
    summary = write_report([run, other], tmp_path / "out")
    page = summary.path.read_text(encoding="utf-8")
    assert "<script" not in page and "<b>bold" not in page and "<i>" not in page
    assert page.count("&lt;script&gt;") >= 5
    for path in summary.plots:
        assert path.parent == tmp_path / "out" / "plots"
        ElementTree.fromstring(path.read_bytes())


def test_pictures_inside_the_page_are_well_formed(runs):
    page = write_report(runs).path.read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) > 10
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_edge_weight_pictures_name_every_operation_and_edge(runs):
    summary = write_report(runs)
    by_name = {path.stem: path.read_text() for path in summary.plots}
    for name in ("edge_weights_normal", "heat_map_normal"):
        nodes = ElementTree.fromstring(by_name[name]).iter(f"{SVG}text")
        texts = ["".join(node.itertext()) for node in nodes]
        assert set(OPERATIONS) <= set(texts)
        edges = {text for text in texts if "\u2192" in text and len(text) < 12}
        assert edges == {
            *("ck\u22122 \u2192 0", "ck\u22121 \u2192 0", "ck\u22122 \u2192 1"),
            *("ck\u22121 \u2192 1", "0 \u2192 1"),
        }
    assert by_name["heat_map_normal"].count(">0.250<") == 20


@pytest.mark.parametrize(
    ("recorded", "named"),
    [
        (["none", "noise", "skip_connect", "sep_conv_5x5"], True),
        (["noise"], False),  # fewer names than columns
        ([1, 2, 3, 4], False),
        ("none", False),
    ],
)
def test_primitives_come_from_the_rows_where_the_config_cannot_tell(
    recorded, named, tmp_path
):
    """Per-edge primitives lie in a file outside of the run, which may be gone."""
    model = {"num_nodes": 2, "primitives": [], "edge_primitives": "gone.json"}
    run = make_run(tmp_path / "s0", "search", 0.5, model=model)
    rows = (run / "genotypes.jsonl").read_text().splitlines()
    rows = [json.loads(row) | {"primitives": recorded} for row in rows]
    put_rows(run, "genotypes.jsonl", rows)
    summary = write_report([run])
    by_name = {path.stem: path.read_text() for path in summary.plots}
    texts = {
        node.text for node in ElementTree.fromstring(by_name["heat_map_normal"]).iter()
    }
    assert ({"noise", "sep_conv_5x5"} <= texts) == named
    assert ("operation 3" in texts) == (not named)
    assert any("are not known" in note for note in summary.notes) == (not named)


def test_damaged_and_unfinished_runs(tmp_path):
    run = make_run(tmp_path / "s0", "search", None)
    metrics = run / "metrics.jsonl"
    row = '{"epoch": 7, "valid_loss": NaN, "train_loss": "high", "valid_accuracy": Infinity}'
    metrics.write_text(metrics.read_text() + row + '\n{"epoch": 8, "valid_lo')
    (run / "config.json").write_text("[1, 2")
    (run / "timing.jsonl").unlink()
    summary = write_report([run])
    text = "\n".join(summary.notes)
    assert "s0: metrics.jsonl: torn last line ignored" in text
    assert "s0: config.json is not a JSON object; ignored" in text
    assert "s0: unfinished: 4 epochs, no result.json" in text
    assert "primitives of the normal edge weights are not known" in text
    page = summary.path.read_text()
    assert "No run has finished yet." in page and "<h2>Time</h2>" not in page
    assert "NaN" not in page.replace("&quot;", "") and "Infinity" not in page
    assert summary.searched is None


def test_a_gap_breaks_the_line(tmp_path):
    run = make_run(tmp_path / "s0", "search", 0.5)
    losses = [1.0, 2.0, float("nan"), 3.0, 2.0]
    rows = [{"epoch": e, "valid_loss": loss} for e, loss in enumerate(losses)]
    put_rows(run, "metrics.jsonl", rows)
    plots = {path.stem: path.read_text() for path in write_report([run]).plots}
    root = ElementTree.fromstring(plots["search_loss"])
    curves = [
        path.get("d") for path in root.iter() if path.get("stroke-width") == "1.8"
    ]
    assert [curve.count("M") for curve in curves] == [2]


def test_a_run_of_no_epochs(tmp_path):
    folder = tmp_path / "t0"
    folder.mkdir()
    put(folder, "manifest.json", {"command": "retrain"})
    summary = write_report([folder])
    assert "no values yet" in summary.path.read_text()
    assert summary.genotype is None and summary_lines(summary)[-1].startswith("report:")


def test_a_row_written_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "s0", "search", 0.5, epochs=0)
    rows = [{"epoch": 1, "a": 1}, {"epoch": 0, "a": 2}, {"epoch": 1, "a": 3}]
    put_rows(run, "metrics.jsonl", rows)
    assert [row["a"] for row in read_run(run, "s0").metrics] == [2, 3]


def test_runs_that_differ_in_more_than_the_seed_are_named(tmp_path):
    make_run(tmp_path / "t0", "retrain", 0.5, seed=1)
    make_run(tmp_path / "t1", "retrain", 0.6, seed=2, num_epochs=9)
    make_run(tmp_path / "t2", "retrain", 0.9, dataset={"name": "cifar10"})
    summary = write_report([tmp_path])  # a folder of runs stands for them
    assert summary.path == tmp_path / "report.html"
    assert summary.derived.n == 2
    assert "retrainings on digits differ in num_epochs" in summary.notes
    assert any("several data sets (digits, cifar10)" in note for note in summary.notes)


def test_output_may_be_a_file(runs, tmp_path):
    path = tmp_path / "elsewhere" / "paper.html"
    summary = write_report(runs[:1], path)
    assert summary.path == path and path.is_file()
    assert not (runs[0] / "report.html").exists()
    assert sorted(p.name for p in path.parent.iterdir()) == ["paper.html", "plots"]


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for directories, words in (
        ([tmp_path / "gone"], "does not exist"),
        ([tmp_path / "empty"], "no run in"),
        ([], "no run directory given"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            write_report(directories)
        assert "\n" not in str(caught.value)


def test_runs_of_several_seeds_beside_single_ones(tmp_path):
    make_run(tmp_path / "s0", "search", 0.8)
    make_run(tmp_path / "many" / "seed0", "search", 0.6)
    make_run(tmp_path / "many" / "seed1", "search", 0.7)
    summary = write_report([tmp_path], output=tmp_path / "report.html")
    assert (summary.searched.n, summary.searched.mean) == (3, pytest.approx(0.7))


def test_folders_of_images_have_no_common_mean(tmp_path):
    for name, accuracy in (("flowers", 0.97), ("cars", 0.5)):
        data = {"name": "folder", "path": f"/x/{name}"}
        make_run(tmp_path / name, "retrain", accuracy, dataset=data)
    summary = write_report([tmp_path / "flowers", tmp_path / "cars"])
    assert (summary.derived.n, summary.derived.mean) == (1, 0.97)
    page = summary.path.read_text()
    assert "folder /x/flowers" in page and "folder /x/cars" in page


def _of_folder(folder, command, path, seed, **found):
    """A run on the images in `path`, in which it found what is given."""
    folder = make_run(
        folder, command, 0.5, seed=seed, dataset={"name": "folder", "path": path}
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    shared = {"name": "folder", "classes": ["a", "b"], "mean": [0.5], "std": [0.2]}
    put(folder, "manifest.json", manifest | {"data": shared | found})
    return folder


def test_a_data_set_is_what_was_found_and_not_where(tmp_path):
    """Moved images are the same set; other images at the same relative path are another."""
    here = _of_folder(tmp_path / "a", "retrain", "imgs", 0, labels="1")
    moved = _of_folder(tmp_path / "b", "retrain", "/x/imgs", 1, labels="1")
    other = _of_folder(tmp_path / "c", "retrain", "imgs", 2, labels="2", mean=[0.4])
    search = _of_folder(tmp_path / "d", "search", "imgs", 0, labels="0")
    assert write_report([here, moved]).derived.n == 2
    summary = write_report([here, other, search])
    assert summary.derived.n == summary.searched.n == 1
    assert any("folder imgs, folder imgs #2" in note for note in summary.notes)


def test_a_copy_of_a_run_is_noted(tmp_path):
    run = make_run(tmp_path / "t0", "retrain", 0.9, genotype="DARTS_V2")
    shutil.copytree(run, tmp_path / "t1")
    again = make_run(tmp_path / "t2", "retrain", 0.9, genotype="darts_v2", seed=1)
    notes = write_report([run, tmp_path / "t1", again]).notes
    assert notes == ("t0 and t1 are of the same seed: counted as 2 runs",)


def test_a_mean_of_named_genotypes_is_noted(tmp_path):
    names = {"a": "DARTS_V2", "b": "NASNet_A", "c": "runs/s0/genotype.json"}
    folders = []
    for seed, (name, genotype) in enumerate(names.items()):
        folder = make_run(tmp_path / name, "retrain", 0.9, genotype=genotype, seed=seed)
        if not genotype.endswith(".json"):
            put(folder, "genotype.json", zoo.load(genotype).to_json())
        folders.append(folder)
    several = "one mean of different genotypes on digits: DARTS_V2, NASNet_A"
    assert several in write_report(folders[:2]).notes
    assert f"{several} and derived ones" in write_report(folders).notes
    assert not any("one mean" in note for note in write_report(folders[2:]).notes)


def test_the_header_says_what_a_retraining_was_of(tmp_path):
    limited = {"name": "digits", "limit": 64}
    folder = make_run(tmp_path / "t", "retrain", 0.9, space="tiny", dataset=limited)
    page = write_report([folder]).path.read_text()
    assert "Genotypes of space darts, only 64 training images." in page
    assert "pace tiny" not in page.split("<h2>Configuration")[0]


def test_uniform_entropy_is_of_the_edges_own_primitives(tmp_path):
    """Every edge of S1 has two of the six."""
    folder = make_run(tmp_path / "s", "search", 0.9, space="darts_s1", model={})
    write_report([folder])
    picture = (folder / "plots" / "entropy.svg").read_text()
    assert "uniform over 2" in picture


def test_edge_weights_that_are_all_negative_have_a_picture(tmp_path):
    folder = make_run(tmp_path / "s", "search", 0.9, epochs=1)
    weights = np.full((5, 4), -0.5).tolist()
    row = {"epoch": 0, "genotype": GENOTYPE, "edge_weights": {"normal": weights}}
    put_rows(folder, "genotypes.jsonl", [row])
    write_report([folder])
    assert "-0.500" in (folder / "plots" / "heat_map_normal.svg").read_text()
