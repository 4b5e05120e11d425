"""The report: one page without network, of which everything that came from a model stays text."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.graph.edits import all_nodes
from graphopt.presets import preset
from graphopt.report.html import write_report
from graphopt.report.html.blocks import repeated
from graphopt.report.html.layout import layered
from graphopt.runtime.trial import runnable_samples
from tests.pages import Page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the attention model, one of whose nodes has a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    model = files.load(digits / "attention.onnx")
    next(node for node in all_nodes(model) if node.op_type == "Softmax").name = HOSTILE
    model.producer_name = HOSTILE
    files.save(model, folder / "model.onnx")
    graphopt.optimize(folder / "model.onnx", folder / "out.onnx", recipe=preset("exact").changed(verify="outputs"))
    arguments = ["--against", str(folder / "model.onnx"), "--data", str(digits / "calib.npz"), "-o", str(folder / "report.html"), "--quiet"]
    assert main(["report", str(folder / "out.onnx"), *arguments]) == 0
    return folder / "report.html"


def test_page_holds_everything(page: Path) -> None:
    """Nothing is loaded from elsewhere, no name becomes markup, and the figures are those of the files."""
    text = page.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    parsed = Page(text)
    assert parsed.loads == []
    assert parsed.images == 0
    assert parsed.scripts == 4  # the content, two libraries, our own
    content = parsed.content
    assert content["version"] == 1
    original, result = page.with_name("model.onnx"), page.with_name("out.onnx")
    assert content["before"]["bytes"] == files.total_bytes(original)
    assert content["after"]["bytes"] == files.total_bytes(result)
    assert content["after"]["nodes"] < content["before"]["nodes"]
    nodes = {node["id"]: node for node in content["graph"]["nodes"]}
    assert HOSTILE in nodes
    fused = next(node for name, node in nodes.items() if name.endswith("/Gelu"))
    assert fused["made_by"] == "activations"
    assert fused["steps"][0]["rewrite"] == "activations/recognize-gelu"
    assert all(edge[0] in nodes and edge[1] in nodes for edge in content["graph"]["edges"])
    layers = content["layers"]
    assert layers
    assert all(layer["macs"] and layer["bytes"] and layer["kernel"] for layer in layers)
    assert all(layer["became"] for layer in layers)


def test_result_alone_has_no_before(page: Path, tmp_path: Path) -> None:
    """Without the original there is a page of the result."""
    assert main(["report", str(page.with_name("out.onnx")), "-o", str(tmp_path / "alone.html"), "--quiet"]) == 0
    content = Page((tmp_path / "alone.html").read_text(encoding="utf-8")).content
    assert content["before"] is None
    assert content["samples"]["synthetic"] is True


def test_optimize_writes_a_report(digits: Path, tmp_path: Path) -> None:
    """A run can end with its report."""
    arguments = ["-o", str(tmp_path / "out.onnx"), "--verify", "structure", "--report", str(tmp_path / "out.html"), "--quiet"]
    assert main(["optimize", str(digits / "conv.onnx"), *arguments]) == 0
    content = Page((tmp_path / "out.html").read_text(encoding="utf-8")).content
    assert content["before"]["name"] == "conv.onnx"
    assert content["after"]["name"] == "out.onnx"


def test_layers_say_what_happened_and_why_not(digits: Path, tmp_path: Path) -> None:
    """A layer that became two has both their shapes and bytes, one that was left alone its reason."""
    samples = [{"image": image[None]} for image in np.load(digits / "calib.npz")["image"][:32]]
    recipe = preset("low-rank", macs=0.8).changed(verify="outputs")
    graphopt.optimize(digits / "conv.onnx", tmp_path / "out.onnx", recipe=recipe, data=samples)
    write_report(tmp_path / "out.html", tmp_path / "out.onnx", digits / "conv.onnx", samples)
    content = Page((tmp_path / "out.html").read_text(encoding="utf-8")).content
    assert (content["samples"]["run"], content["samples"]["of"]) == (4, 32)
    split = [layer for layer in content["layers"] if layer["steps"]]
    assert split
    for layer in split:
        assert layer["steps"][-1].startswith("factorize: ")
        assert len(layer["shapes_after"]) == 2
        assert layer["bytes"] > layer["bytes_after"] >= 4 * sum(math.prod(shape) for shape in layer["shapes_after"])
    left = [layer for layer in content["layers"] if not layer["steps"]]
    assert all(any(told.startswith("not factorize: ") for told in layer["obstacles"]) for layer in left)


def test_what_is_missing_is_one_line(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model, no folder to write to."""
    assert main(["report", str(page.with_name("none.onnx")), "-o", str(page)]) == 1
    assert main(["report", str(page.with_name("out.onnx")), "-o", "/none/of/this.html", "--quiet"]) == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("graphopt: ")]) == 2


def test_layers_of_nodes_follow_the_data() -> None:
    """Each node lies below what it reads, two in a layer lie apart, and a long chain stays straight."""
    nodes = ["a", "b", "c", "d", "e"]
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]
    places = layered(nodes, edges)
    assert all(places[tail][1] < places[head][1] for tail, head in edges)
    assert places["b"][1] == places["c"][1]
    assert abs(places["b"][0] - places["c"][0]) >= 150
    assert places["d"][0] == places["e"][0]
    chain = [str(number) for number in range(5000)]
    start = time.perf_counter()
    straight = layered(chain, list(itertools.pairwise(chain)))
    assert len({x for x, _ in straight.values()}) == 1
    assert time.perf_counter() - start < 5


def test_repeated_blocks() -> None:
    """Three or more equal stretches in a row are blocks; two, or short ones, are not."""
    block = list("abcdef")
    assert repeated(["x", *block * 4, "y"]) == [range(1, 7), range(7, 13), range(13, 19), range(19, 25)]
    assert repeated(["x", *block * 2, "y"]) == []
    assert repeated(list("ab") * 2) == []


def complaints(page: Path, browser: Any) -> list[str]:
    """Opens a page; addresses that it asked for, and errors on its console."""
    browser.get(page.as_uri())
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    told = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    return [*(url for url in urls if not url.startswith(("file:", "data:"))), *told]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", ["resnet50", "bert_6l"])
def test_architectures_in_a_browser(arch: Path, tmp_path: Path, name: str, browser: Any) -> None:
    """A page of a model alone opens quietly, with its layers and its graph, and is small."""
    assert main(["report", str(arch / name / "model.onnx"), "-o", str(tmp_path / "page.html"), "--quiet"]) == 0
    assert (tmp_path / "page.html").stat().st_size < 5_000_000
    assert complaints(tmp_path / "page.html", browser) == []
    assert browser.execute_script("return document.querySelectorAll('#layer-table tbody tr').length") > 30
    assert browser.execute_script("return graphoptReport.drawing.nodes().length") > 30


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("recipe", [preset("int8"), preset("prune", macs=0.7)], ids=["int8", "prune"])
def test_approximated_models_in_a_browser(zoo: Path, tmp_path: Path, recipe: graphopt.Recipe, browser: Any) -> None:
    """The page beside the original tells of each layer what became of it."""
    model = zoo / "cifar_resnet20_ft" / "model.onnx"
    feeds = list(runnable_samples(files.load(model), None, None, count=8, path=model))
    graphopt.optimize(model, tmp_path / "out.onnx", recipe=recipe.changed(verify="outputs", min_sqnr=0), data=feeds)
    write_report(tmp_path / "page.html", tmp_path / "out.onnx", model, feeds)
    assert complaints(tmp_path / "page.html", browser) == []
    assert browser.execute_script("return graphoptReport.data.layers.filter((layer) => layer.steps.length).length") > 5


@pytest.mark.browser
def test_page_in_a_browser(page: Path, browser: Any) -> None:
    """No error, no request; tables sort and filter, search finds, the drawing zooms, a hostile name stays text."""
    assert complaints(page, browser) == []

    def run(script: str) -> Any:
        return browser.execute_script(script)

    cell = "return [...document.querySelectorAll('#layer-table tbody tr')].map((row) => row.children[3].textContent.replaceAll(',', ''))"
    click = "document.querySelectorAll('#layer-table th')[3].click()"
    run(click)
    falling = [float(text) for text in run(cell)]
    assert falling == sorted(falling, reverse=True)
    run(click)
    assert [float(text) for text in run(cell)] == falling[::-1]
    run("const box = document.getElementById('layer-filter'); box.value = 'gemm'; box.dispatchEvent(new Event('input'))")
    assert len(run(cell)) < len(falling)
    run("const box = document.getElementById('node-search'); box.value = '<script>'; box.dispatchEvent(new Event('input'))")
    assert run("return document.querySelector('#story h3').textContent") == HOSTILE
    assert run("return document.querySelectorAll('#story script, #story img').length") == 0
    run("graphoptReport.drawing.stop(); graphoptReport.drawing.zoom(2)")
    assert run("return graphoptReport.drawing.zoom()") == 2
    run("document.getElementById('fit').click()")
    assert run("return graphoptReport.drawing.zoom()") < 2
    assert run("return graphoptReport.drawing.nodes().length") == run("return graphoptReport.data.graph.nodes.length")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
