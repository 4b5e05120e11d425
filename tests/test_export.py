"""Export from torch: what is written computes what torch computes, and nothing else is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import RuntimeUnavailableError, UnsupportedModelError, VerificationError
from graphopt.exporter import DEFAULT_OPSET, FactoryError, export, load_factory
from graphopt.files import load
from graphopt.graph.edits import all_nodes
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import open_session

FACTORIES = """
import torch
def good():
    return torch.nn.Linear(3, 2), (torch.ones(4, 3),), ({0: "batch"},)
def short():
    return torch.nn.Linear(3, 2), torch.ones(4, 3)
def bare():
    return torch.nn.Linear(3, 2)
def broken():
    return 1 / 0
"""


@pytest.fixture(scope="module")
def torch() -> Any:
    """Torch, without which these tests are skipped."""
    return pytest.importorskip("torch", reason="torch is not installed: pip install graphopt[torch]")


@pytest.fixture
def network(torch: Any) -> Any:
    """A small network with a dropout, a batch normalization and parts in different modes."""
    torch.manual_seed(0)
    parts = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.LazyLinear(5)]
    made = torch.nn.Sequential(*parts)
    made(torch.randn(2, 3, 6, 6))
    made.train()
    made[1].eval()
    return made


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of factories, which is the current one."""
    (tmp_path / "my_factories.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_factories", raising=False)
    return tmp_path


def test_export_writes_what_torch_computes(torch: Any, network: Any, tmp_path: Path) -> None:
    """The file has the given names, a dynamic batch, the default opset, and torch's outputs at another batch."""
    path = export(
        network, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx", dynamic_shapes=({0: "batch"},), input_names=["x"], output_names=["y"]
    )
    model = load(path)
    assert str(signature_of(model).inputs[0]) == "x: float[batch, 3, 6, 6]"
    assert model.opset_imports[""] == DEFAULT_OPSET
    x = torch.randn(5, 3, 6, 6)
    network.eval()
    np.testing.assert_allclose(open_session(path).run({"x": x.numpy()})["y"], network(x).detach().numpy(), atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_export_keeps_modes(torch: Any, network: Any, tmp_path: Path) -> None:
    """Each part of the module is in the mode it was in, also after a failure."""
    modes = [part.training for part in network.modules()]
    export(network, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx")
    assert [part.training for part in network.modules()] == modes
    with pytest.raises(UnsupportedModelError):
        export(network, torch.randn(2, 7, 6, 6), tmp_path / "m.onnx")
    assert [part.training for part in network.modules()] == modes


def test_export_leaves_no_trace_of_the_machine(torch: Any, network: Any, tmp_path: Path) -> None:
    """No stack trace, no local path and no exporter's metadata enter the file."""
    path = export(network, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx")
    content = path.read_bytes()
    for word in (b"stack_trace", b".py", str(tmp_path).encode(), str(Path.home()).encode() + b"/", b"pkg.torch"):
        assert word not in content, word
    model = load(path)
    assert not any(node.metadata_props or node.doc_string for node in all_nodes(model))


def test_export_is_deterministic(torch: Any, network: Any, tmp_path: Path) -> None:
    """Exporting twice gives the same bytes."""
    first, second = (export(network, torch.ones(2, 3, 6, 6), tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second


def test_keyword_arguments(torch: Any, tmp_path: Path) -> None:
    """A dict of example inputs is given to the module by keyword."""

    class Difference(torch.nn.Module):  # type: ignore[misc]  # torch is skipped by the type checker
        def forward(self, a: Any, b: Any) -> dict[str, Any]:
            return {"d": a - b, "s": (a + b).sum(-1)}

    inputs = {"b": torch.randn(2, 3), "a": torch.randn(2, 3)}
    path = export(Difference(), inputs, tmp_path / "m.onnx", dynamic_shapes={"b": {0: "n"}, "a": {0: "n"}})
    found = open_session(path).run({name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(next(iter(found.values())), (inputs["a"] - inputs["b"]).numpy())


def test_differing_outputs_are_refused(torch: Any, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose outputs are not torch's is not written."""
    exporting = sys.modules[export.__module__]
    genuine = exporting._run_torch
    monkeypatch.setattr(exporting, "_run_torch", lambda *given: [array + 1 for array in genuine(*given) or ()])
    with pytest.raises(VerificationError, match="differs from torch on the example inputs"):
        export(network, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_specialized_dimension_is_found_out(torch: Any, tmp_path: Path) -> None:
    """A module whose trace holds for the example's length only is refused on inputs of another length."""

    class Counting(torch.nn.Module):  # type: ignore[misc]  # torch is skipped by the type checker
        def forward(self, x: Any) -> Any:
            return x * float(np.prod(x.detach().clone().shape)) if isinstance(x.shape[0], int) else x * 12.0

    with pytest.raises(VerificationError, match="inputs of twice the length"):
        export(Counting(), torch.ones(4, 3), tmp_path / "m.onnx", dynamic_shapes=({0: "n"},))


def test_what_torch_cannot_export_is_one_line(torch: Any, tmp_path: Path) -> None:
    """An exporter's failure is one line that names the module."""

    class Branching(torch.nn.Module):  # type: ignore[misc]  # torch is skipped by the type checker
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModelError, match=r"^torch cannot export Branching: [^\n]+$"):
        export(Branching(), torch.ones(4, 3), tmp_path / "m.onnx")


def test_opset_out_of_range(torch: Any, network: Any, tmp_path: Path) -> None:
    """An opset that the runtime does not load is refused before anything is done."""
    with pytest.raises(UnsupportedModelError, match="opset 99 is out of range"):
        export(network, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx", opset=99)


@pytest.mark.usefixtures("factories", "torch")
def test_factory() -> None:
    """A factory in the current folder gives module, inputs and dynamic shapes."""
    module, inputs, shapes = load_factory("my_factories:good")
    assert module(*inputs).shape == (4, 2)
    assert shapes == ({0: "batch"},)
    assert load_factory("my_factories:short")[2] is None
    assert str(Path.cwd()) not in sys.path


@pytest.mark.usefixtures("factories", "torch")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_factories", "write package.module:factory"),
        ("my_factories:", "write package.module:factory"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("my_factories:godo", "no function 'godo'; it has good, short, bare, broken"),
        ("my_factories:bare", "must return"),
        ("my_factories:broken", r"ZeroDivisionError: division by zero \(my_factories.py, line 10\)"),
    ],
)
def test_wrong_factories_are_one_line(name: str, message: str) -> None:
    """What is wrong with a factory is said in one line."""
    with pytest.raises(FactoryError, match=message) as caught:
        load_factory(name)
    assert "\n" not in str(caught.value)


def test_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without torch the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install graphopt\[torch\]"):
        export(None, None, tmp_path / "m.onnx")
    with pytest.raises(RuntimeUnavailableError, match=r"pip install graphopt\[torch\]"):
        load_factory("anything:at_all")
