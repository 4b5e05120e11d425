"""What commands print with --json, and the files beside a result, have the forms that docs/schemas describes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from graphopt.choosing import causes
from graphopt.cli import app, main
from graphopt.graph.difference import changes
from graphopt.graph.units import blocks
from graphopt.presets import PRESETS, preset
from graphopt.recipe import Recipe, Resolution, SessionSettings

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS: Mapping[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs" / "schemas").glob("*.json"))
}
RUNS: Mapping[str, str] = {
    "optimize": "optimize model.onnx -o out.onnx --data few.npz --time-limit 0.2",
    "optimize int8": "optimize model.onnx -o int8.onnx --data few.npz --preset int8 --verify outputs",
    "optimize dropping": "optimize attention.onnx -o close.onnx --data few.npz --pass storage --min-sqnr 52 --verify outputs",
    "compare": "compare model.onnx model.onnx --time-limit 0.2",
    "diff": "diff model.onnx int8.onnx",
    "diff values": "diff model.onnx int8.onnx --data few.npz",
    "calibrate": "calibrate model.onnx --data few.npz --limit 4 -o stats.npz",
    "sensitivity": "sensitivity model.onnx --data few.npz --pass storage",
    "inspect": "inspect attention.onnx",
    "inspect-kernels": "inspect int8.onnx --kernels",
    "inspect-couplings": "inspect model.onnx --couplings",
    "profile": "profile model.onnx --data few.npz",
    "report": "report out.onnx -o page.html",
    "why": "why out.onnx node_div",
    "why nearly": "why out.onnx node_Conv_78",
    "verify": "verify out.onnx --against model.onnx",
    "pack": "pack model.onnx -o model.gopt",
    "unpack": "unpack model.gopt -o back.onnx",
    "passes": "passes",
    "targets": "targets",
    "presets": "recipe",
    "recipe": "recipe int8",
}
"""By schema, with a word more where one is run twice, in an order in which each finds what it reads."""


def complaints(name: str, content: Any) -> list[str]:
    """Where content is not of the form of a schema."""
    found = jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors(content)
    return [f"{name}{error.json_path.removeprefix('$')}: {error.message}" for error in found]


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def printed_in(desk: Path, digits: Path) -> dict[str, Any]:
    """What each command printed, and the files beside the results, by schema."""
    for source, name in (("conv.onnx", "model.onnx"), ("attention.onnx", "attention.onnx")):
        shutil.copy(digits / source, desk / name)
    np.savez(desk / "few.npz", image=np.load(digits / "calib.npz")["image"][:16])
    found: dict[str, Any] = {}
    with contextlib.chdir(desk):
        for name, line in RUNS.items():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                assert main([*line.split(), "--json"]) == 0, f"{line}: {err.getvalue()}"
            found[name] = json.loads(out.getvalue(), parse_constant=_refuse)
    for stem in ("out", "int8", "close"):
        ledger = (desk / f"{stem}.onnx.ledger.json").read_text(encoding="utf-8")
        found[f"ledger of {stem}"] = json.loads(ledger, parse_constant=_refuse)
        found[f"recipe of {stem}"] = yaml.safe_load((desk / f"{stem}.onnx.recipe.yaml").read_text(encoding="utf-8"))
    return found


def test_commands_and_files_have_their_schemas(tmp_path: Path, digits: Path) -> None:
    """What each command prints, and each file beside a result, is of its schema, which allows nothing that it does not describe."""
    printed = printed_in(tmp_path, digits)
    assert not [complaint for name, content in printed.items() for complaint in complaints(name.partition(" ")[0], content)]
    # What a form holds only sometimes was there, and was checked.
    assert printed["diff values"]["values"]
    assert printed["optimize"]["figures"]["speed"]
    assert printed["optimize int8"]["figures"]["coverage"]
    assert printed["optimize dropping"]["dropped"]
    assert printed["ledger of close"]["dropped"]
    assert printed["why nearly"]["near_misses"]
    assert printed["inspect-kernels"]["planned"]
    # A key more, or one less, is a complaint.
    assert complaints("verify", printed["verify"] | {"more": 1})
    assert complaints("verify", {key: value for key, value in printed["verify"].items() if key != "feeds"})


def test_every_command_has_a_run() -> None:
    """No command is left out, but for export, which wants torch."""
    commands = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    assert {line.split()[0] for line in RUNS.values()} == commands - {"export"}
    assert {name.partition(" ")[0] for name in RUNS} == set(SCHEMAS) - {"export", "ledger"}


def test_export_prints_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Export prints where the model is."""
    pytest.importorskip("torch")
    (tmp_path / "exported.py").write_text("import torch\ndef relu(): return torch.nn.ReLU(), (torch.zeros(1, 2),)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "exported:relu", "-o", "model.onnx", "--json"]) == 0
    assert not complaints("export", json.loads(capsys.readouterr().out))


def _objects(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield place, schema
        for key, value in schema.items():
            yield from _objects(value, f"{place}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from _objects(value, f"{place}/{number}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_describe_everything(name: str) -> None:
    """Each schema is one, has a version, describes each property, and allows no others; the page on JSON links to it."""
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["version"]["const"] == 1
    for place, each in _objects(schema, name):
        assert each["additionalProperties"] is False, place
        assert all(inner.get("description") for inner in each["properties"].values()), place
    assert f"](schemas/{name}.json)" in (ROOT / "docs" / "json.md").read_text(encoding="utf-8")


def test_recipes_schema_is_the_recipes() -> None:
    """The schema of recipes has the fields and defaults of the class, and takes each preset and short form."""
    schema = SCHEMAS["recipe"]
    resolution = schema["properties"]["resolved"]["anyOf"][1]
    for kind, described in ((Recipe, schema), (SessionSettings, schema["properties"]["session"]), (Resolution, resolution)):
        own = kind.model_json_schema()["properties"]
        assert set(described["properties"]) == set(own)
        defaults = {key: value["default"] for key, value in own.items() if "default" in value and key != "version"}
        assert {key: value["default"] for key, value in described["properties"].items() if "default" in value} == defaults
    for name in PRESETS:
        assert not complaints("recipe", preset(name).model_dump(mode="json"))
    spellings = ["storage(bits=8)", {"storage": {"bits": 8}}, {"storage": None}, {"name": "storage", "options": {"bits": 8}}]
    written = {"version": 1, "passes": spellings}
    assert not complaints("recipe", written)
    assert Recipe.model_validate(written).passes[0] == Recipe.model_validate(written).passes[3]
    assert complaints("recipe", {"passes": ["cleanup"], "min_snqr": 3})


def test_enumerations_are_those_of_the_code() -> None:
    """Where a schema lists words, these are the code's."""
    objects = [each for schema in SCHEMAS.values() for _, each in _objects(schema, "")]
    listed = [set(inner["enum"]) for each in objects for inner in each["properties"].values() if "enum" in inner]
    for kind in (causes.Kind, changes.Kind, blocks.Kind, blocks.Role):
        assert set(typing.get_args(kind)) in listed


def test_page_names_every_command() -> None:
    """The page on JSON has a line for each command."""
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    named = {words.split()[0] for words in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)}
    assert {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands} <= named
