"""Exports a torch module to ONNX, and refuses what does not compute what torch computes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt import files
from graphopt.errors import GraphoptError, RuntimeUnavailableError, SessionError, UnsupportedModelError, VerificationError
from graphopt.files.weights import graphs_of
from graphopt.graph.structure import verify_structure
from graphopt.runtime.fidelity import measure, worst
from graphopt.runtime.session import open_session, runtime_limits

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_OPSET = 20
"""Old enough for every runtime in use, new enough for Gelu; 23 makes rotary embeddings that ONNX Runtime does not run."""

_OLDEST_OPSET = 18
_EXPORTERS_METADATA = "pkg.torch."


class FactoryError(GraphoptError, ValueError):
    """A factory of a module to export cannot be found or does not return what it should."""


def export(
    module: torch.nn.Module,
    example_inputs: Any,
    output: str | Path,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Exports a torch module and checks the file against torch.

    The module is exported, and checked, in evaluation mode; afterwards every submodule is in the mode that it was in.
    The check runs the example inputs and, where dimensions are dynamic and torch takes it, inputs of twice the length.

    Args:
        module: what to export.
        example_inputs: what it is called with: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        output: the ``.onnx`` file to write; it appears whole or not at all.
        dynamic_shapes: which dimensions may vary, as ``torch.export`` wants it: per argument ``{axis: name}``.
        opset: version of the standard operators; None for 20, or the newest that the installed runtime loads.
        input_names: of the model's inputs, in order; None for torch's.
        output_names: of the model's outputs, in order; None for torch's.
        tolerance: largest difference from torch, relative to the largest magnitude of each output.

    Returns:
        The file.

    Raises:
        RuntimeUnavailableError: torch, or ONNX Runtime, is not installed.
        UnsupportedModelError: torch cannot export the module, or the opset is out of range.
        SessionError: ONNX Runtime does not load or run what torch exported.
        VerificationError: the file's outputs are not torch's; nothing is written.
        ModelFileError: the file cannot be written.
    """
    torch = _torch()
    version = _checked_opset(opset)
    target = Path(output)
    positional, keyword = _arguments(example_inputs)
    with _evaluating(module), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                positional,
                kwargs=keyword,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=version,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
        except Exception as error:  # torch's exporter raises whatever the module or its own decompositions raise
            raise UnsupportedModelError(f"torch cannot export {type(module).__name__}: {_reason(error)}") from error
        model: ir.Model = program.model
        model.ir_version = min(model.ir_version, runtime_limits().ir_version)
        forget_exporter(model)
        verify_structure(model)
        with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=_folder(target), ignore_cleanup_errors=True) as folder:
            written = Path(folder) / target.name
            files.save(model, written)
            _verify(written, model, module, (positional, keyword), tolerance)
            files.move_model(written, target)
    return target


def load_factory(name: str) -> tuple[torch.nn.Module, Any, Any]:
    """Calls a factory ``package.module:factory`` for what :func:`export` needs; the current folder can be imported from.

    Returns:
        The module, its example inputs, and its dynamic shapes, None where the factory does not return any.

    Raises:
        RuntimeUnavailableError: torch is not installed.
        FactoryError: the factory cannot be imported, fails, or returns something else.
    """
    torch = _torch()
    made = _call(name)
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], torch.nn.Module):
        raise FactoryError(f"{name} must return (module, example_inputs) or (module, example_inputs, dynamic_shapes)")
    module, example_inputs, *rest = made
    return module, example_inputs, rest[0] if rest else None


def forget_exporter(model: ir.Model) -> None:
    """Removes what the exporter noted on nodes, values and the model: stack traces, local paths, names of Python classes."""
    graphs = list(graphs_of(model))
    for graph in graphs:
        constants = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        made = (value for node in graph for value in node.outputs)
        for item in (*graph, *made, *graph.inputs, *constants):
            item.metadata_props.clear()
            item.doc_string = None
    model.doc_string = None
    for properties in (model.metadata_props, *(graph.metadata_props for graph in graphs)):
        for key in [key for key in properties if key.startswith(_EXPORTERS_METADATA)]:
            del properties[key]


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise RuntimeUnavailableError(f"torch cannot be imported ({error}); install it: pip install graphopt[torch]") from error


def _pytree() -> Any:
    """Torch's own way through nested containers, dataclasses that it knows included."""
    return importlib.import_module("torch.utils._pytree")


def _checked_opset(opset: int | None) -> int:
    newest = runtime_limits().opset
    if opset is None:
        return min(DEFAULT_OPSET, newest)
    if not _OLDEST_OPSET <= opset <= newest:
        raise UnsupportedModelError(
            f"opset {opset} is out of range: torch writes {_OLDEST_OPSET} and above, the installed runtime loads up to {newest}"
        )
    return opset


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode and, afterwards, each submodule back into its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _folder(target: Path) -> Path | None:
    return target.parent if target.parent.is_dir() else None  # where there is none, moving the file tells


def _verify(path: Path, model: ir.Model, module: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], tolerance: float) -> None:
    session = _refused_with_remedy(lambda: open_session(path))
    names, outputs = [value.name or "" for value in model.graph.inputs], session.output_names
    for arguments, what in ((call, "the example inputs"), (_doubled(model, call), "inputs of twice the length")):
        if arguments is None:
            continue
        expected = _run_torch(module, arguments)
        if expected is None and arguments is not call:
            logger.info("not checked on %s: torch does not take them", what)
            continue
        if expected is None or len(expected) != len(outputs):
            raise VerificationError(f"the exported model has other outputs than {type(module).__name__}; return tensors only")
        feed = dict(zip(names, _arrays(arguments), strict=True))
        found = _refused_with_remedy(partial(session.run, feed))
        fidelity = worst(measure(dict(zip(outputs, expected, strict=True)), found))
        if fidelity is not None and not fidelity.within(tolerance):
            raise VerificationError(
                f"the exported model differs from torch on {what}: {fidelity}; nothing was written; try another opset or dynamic_shapes"
            )


def _refused_with_remedy(action: Callable[[], T]) -> T:
    """Does what the runtime may refuse; its refusal then says what to try."""
    try:
        return action()
    except SessionError as error:
        raise SessionError(
            f"ONNX Runtime refuses what torch exported, so nothing was written; try another opset (20 or 24): {error}"
        ) from error


def _run_torch(module: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[np.ndarray[Any, Any]] | None:
    """The module's outputs, or None where it does not take these inputs."""
    positional, keyword = call
    try:
        return _arrays(module(*positional, **keyword))
    except Exception as error:  # whatever the module raises
        logger.info("torch: %s", _reason(error))
        return None


def _doubled(model: ir.Model, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The same inputs, repeated once along each dynamic dimension; None where none is dynamic."""
    torch = _torch()
    leaves, structure = _pytree().tree_flatten(call)  # the same order in which torch makes the model's inputs
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    if len(places) != len(model.graph.inputs):
        return None
    dynamic = False
    for place, value in zip(places, model.graph.inputs, strict=True):
        repeats = [1 if isinstance(dim, int) else 2 for dim in value.shape or ()]
        dynamic = dynamic or 2 in repeats
        leaves[place] = leaves[place].repeat(*repeats) if repeats else leaves[place]
    return _pytree().tree_unflatten(leaves, structure) if dynamic else None


def _arrays(tree: Any) -> list[np.ndarray[Any, Any]]:
    """All tensors in a nest of containers, in torch's order."""
    torch = _torch()
    leaves, _ = _pytree().tree_flatten(tree)
    return [_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    from onnx_ir.tensor_adapters import TorchTensor  # knows the element types that NumPy lacks

    return TorchTensor(tensor.detach().cpu().contiguous()).numpy()


def _reason(error: Exception) -> str:
    """The line of an error that says what is wrong: of the innermost cause, the first that is not empty."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _call(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise FactoryError(f"{name!r} is no factory; write package.module:factory")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does
    try:
        factory = _find(importlib.import_module(module_name), function_name, name)
        return factory()
    except GraphoptError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise FactoryError(f"{name}: {_reason(error)}{_place(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _find(module: ModuleType, function_name: str, name: str) -> Callable[[], Any]:
    factory = getattr(module, function_name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise FactoryError(f"{name}: {module.__name__} has no function {function_name!r}; it has {', '.join(own) or 'none'}")
    return factory  # type: ignore[no-any-return]  # what it returns is checked by the caller


def _place(error: Exception) -> str:
    """File and line where an error of the user's code arose."""
    trace = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    return f" ({Path(trace[-1].filename).name}, line {trace[-1].lineno})" if trace else ""
