"""Reads model files, and refuses what cannot be read whole."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from graphopt.errors import GraphoptError, InvalidModelError, ModelFileError, UnsupportedModelError
from graphopt.files.external import anchor, locate, locations
from graphopt.files.weights import check_inline

OLDEST_IR_VERSION = 3
"""The first IR version whose files say which opset they use."""

OLDEST_OPSET = 7
"""The oldest opset of the standard domain that ONNX Runtime runs as it is specified."""

_ELEMENT_TYPES = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}


def model_file(path: Path) -> Path:
    """The model file that a path means: itself, or the one in a folder.

    In a folder, ``model.onnx`` goes first, then the only ``.onnx`` file.

    Raises:
        ModelFileError: nothing is there, or the choice is not clear.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ModelFileError(f"{path}: " + ("not a plain file" if path.exists() else "no such file or folder"))
        return path
    if (path / "model.onnx").is_file():
        return path / "model.onnx"
    models = sorted(child for child in path.iterdir() if child.suffix == ".onnx" and child.is_file())
    if len(models) == 1:
        return models[0]
    if models:
        raise ModelFileError(f"{path}: name one of the models in it: {_listing(models)}")
    raise ModelFileError(f"{path}: a folder without a .onnx file; it holds {_listing(sorted(path.iterdir())) or 'nothing'}")


def _listing(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def load(path: str | Path) -> ir.Model:
    """Loads a model; external data is checked now and mapped when it is first read.

    Args:
        path: a ``.onnx`` file, or a folder with one model.

    Returns:
        The model, its nodes in topological order where the file's were not.

    Raises:
        ModelFileError: the file, or a file of its data, is missing, damaged or out of bounds.
        InvalidModelError: a graph gives a name twice, or names nothing.
        UnsupportedModelError: the IR version, the opset or a type is not supported.
    """
    file = model_file(Path(path))
    try:
        model = _to_ir(parse(file))
        anchor(model, locate(model, file))
        check_inline(model)
    except GraphoptError as error:
        raise type(error)(_prefixed(file, str(error))) from error
    return _settled(model)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Takes a model that is in memory; the caller's object stays as it is.

    Raises:
        ModelFileError: the model refers to external data, or its data is damaged.
        InvalidModelError: a graph gives a name twice, or names nothing.
        UnsupportedModelError: the IR version, the opset or a type is not supported.
    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)  # the IR renames tensors inside the object that it is made from
    model = _to_ir(own)
    for location in locations(model):
        raise ModelFileError(f"the model's weights are in the file {location!r}: give the path of the model file instead")
    check_inline(model)
    return _settled(model)


def from_ir(model: ir.Model) -> ir.Model:
    """Takes a model of the IR; the caller's object stays as it is, weights in external data stay where they are.

    Raises:
        ModelFileError: the model's data is damaged.
        InvalidModelError: the graph cannot be copied.
    """
    try:
        own = model.clone()
    except ValueError as error:
        raise InvalidModelError(f"the graph cannot be copied: {_first_line(_root(error))}") from error
    check_inline(own)
    return _settled(own)


def _prefixed(file: Path, message: str) -> str:
    return message if str(file) in message else f"{file}: {message}"


def parse(file: Path) -> onnx.ModelProto:
    """Reads a model file without its external data.

    Raises:
        ModelFileError: the file cannot be read, or is no ONNX model.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read: {error.strerror}") from error
    if not content:
        raise ModelFileError(f"{file}: the file is empty")
    if content.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{file}: a Git LFS pointer, not the model itself; fetch it with `git lfs pull`")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelFileError(f"{file}: not an ONNX model, or truncated") from error
    # Almost any bytes parse as some message; a model says these three.
    if not (proto.ir_version > 0 and proto.HasField("graph") and proto.graph.output):
        raise ModelFileError(f"{file}: not an ONNX model: it has no IR version, no graph or no output")
    return proto


def _to_ir(proto: onnx.ModelProto) -> ir.Model:
    _check_versions(proto)
    for graph in _graphs(proto):
        _check_names(graph)
    _check_functions(proto)
    try:
        with _quiet():
            return ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, NotImplementedError) as error:
        cause = _root(error)
        kind = UnsupportedModelError if isinstance(cause, NotImplementedError) else InvalidModelError
        raise kind(f"the graph cannot be read: {_first_line(cause)}") from error


def _check_versions(proto: onnx.ModelProto) -> None:
    if not OLDEST_IR_VERSION <= proto.ir_version <= onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"IR version {proto.ir_version} is not supported ({OLDEST_IR_VERSION} to {onnx.IR_VERSION} are); export the model again"
        )
    if not proto.opset_import:
        raise ModelFileError("the model imports no opset; it is truncated or was not made by an exporter")
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not OLDEST_OPSET <= entry.version <= newest:
            raise UnsupportedModelError(f"opset {entry.version} is not supported ({OLDEST_OPSET} to {newest} are); export the model again")


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph, those of functions included."""
    yield proto.graph
    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    while pending:
        for node in pending.pop():
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                    yield graph
                    pending.append(graph.node)


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuses what the IR would drop without a word: unnamed, sparse and doubled initializers, doubled outputs."""
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise UnsupportedModelError(f"sparse initializer {name!r} is not supported; export it as a dense tensor")
    initializers = [tensor.name for tensor in graph.initializer]
    if not all(initializers):
        raise InvalidModelError(f"an initializer of the graph {graph.name!r} has no name; export the model again")
    for tensor in graph.initializer:
        if tensor.data_type not in _ELEMENT_TYPES:
            raise ModelFileError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}; export the model again")
    outputs = [name for node in graph.node for name in node.output if name]
    inputs = [value.name for value in graph.input]
    # An input may have an initializer of its name: its default value.
    for names in (initializers, inputs + outputs, initializers + outputs):
        if len(set(names)) != len(names):
            name, _ = Counter(names).most_common(1)[0]
            raise InvalidModelError(
                f"the name {name!r} is given twice in the graph {graph.name!r} (duplicate name); export the model again"
            )


def _check_functions(proto: onnx.ModelProto) -> None:
    known: set[tuple[str, str, str]] = set()
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in known:
            raise InvalidModelError(f"the function {function.domain}::{function.name} is defined twice (duplicate name)")
        known.add(key)
        outputs = [name for node in function.node for name in node.output if name]
        names = [*function.input, *outputs]
        if len(set(names)) != len(names):
            name, _ = Counter(names).most_common(1)[0]
            raise InvalidModelError(f"the name {name!r} is given twice in the function {function.domain}::{function.name} (duplicate name)")
        missing = [name for name in function.output if name not in names]
        if missing:
            raise InvalidModelError(f"output {missing[0]!r} of the function {function.domain}::{function.name} is computed by no node")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the IR from logging faults of a graph: the verifier reports each as an error."""
    logger = logging.getLogger("onnx_ir.serde")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _settled(model: ir.Model) -> ir.Model:
    """Brings a model that a runtime takes as it is into the form that ONNX asks for."""
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    # ONNX Runtime knows its own domain without an import.
    if "com.microsoft" not in imports and any(node.domain == "com.microsoft" for node in model.graph.all_nodes()):
        imports["com.microsoft"] = 1
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        if not _is_sorted(graph):
            # A cycle cannot be sorted: the verifier says where it is.
            with suppress(ValueError):
                graph.sort()
    return model


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether every node, in subgraphs too, stands after the nodes that it needs."""
    seen: set[ir.Node] = set()
    for node in graph.all_nodes():
        seen.add(node)
        producers = (value.producer() for value in node.inputs if value is not None)
        if any(producer is not None and producer not in seen for producer in producers):
            return False
    return True
