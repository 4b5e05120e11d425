"""Sessions of ONNX Runtime: a model in, arrays in, arrays out; its errors in one line."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never

import numpy as np

from graphopt.errors import RuntimeUnavailableError, SessionError
from graphopt.runtime import extension

if TYPE_CHECKING:
    import onnx_ir as ir

Optimizations = Literal["all", "none"]
"""The runtime's own graph optimizations: ``ORT_ENABLE_ALL`` or ``ORT_DISABLE_ALL``."""

Feed = Mapping[str, np.ndarray]
Outputs = dict[str, Any]
"""Arrays by output name; a sequence output is a list, a map a dict, an empty optional None."""

_LEVELS = {"all": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"}
_ERRORS_ONLY = 4
_LONGEST_REASON = 300
_NEWEST_PROBED = 64


@dataclass(frozen=True)
class SessionOptions:
    """How sessions run.

    Attributes:
        threads: threads within an operator; 0 leaves the choice to the runtime.
        providers: execution providers, most wanted first.
        custom_ops: shared libraries of custom operators.
        config: session configuration entries of ONNX Runtime.
    """

    threads: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    custom_ops: tuple[Path, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """The newest versions that the installed runtime loads."""

    opset: int
    ir_version: int


class Session:
    """A loaded model. It owns what it was loaded from: temporary files, or weights in memory."""

    def __init__(self, native: Any, owned: Any = None) -> None:
        self._native = native
        self._owned = owned
        self._wide = any(extension.is_extension_type(value.type) for value in native.get_outputs())
        self.input_names: tuple[str, ...] = tuple(value.name for value in native.get_inputs())
        self.output_names: tuple[str, ...] = tuple(value.name for value in native.get_outputs())

    def end_profiling(self) -> str:
        """Stops the runtime's profiler, where the session was made with one; returns the file that it wrote."""
        return str(self._native.end_profiling())

    def run(self, feed: Feed) -> Outputs:
        """Runs the model once.

        Args:
            feed: arrays by input name; names that are not inputs are refused.

        Raises:
            SessionError: the runtime refused the feed or failed; names the node where the runtime does.
        """
        try:
            if self._wide or any(extension.is_extension(array) for array in feed.values()):
                return dict(zip(self.output_names, extension.run(onnx_runtime(), self._native, feed), strict=True))
            return dict(zip(self.output_names, self._native.run(None, dict(feed)), strict=True))
        except Exception as error:  # the runtime's exceptions share no narrower base class
            refuse("the model does not run", error)


def open_session(model: ir.Model | Path, optimizations: Optimizations = "all", options: SessionOptions | None = None) -> Session:
    """Loads a model into the runtime; the model itself is never changed.

    Args:
        model: a file, or a model in flight. Weights of the latter travel as bytes; large ones stay where they are, or go through a
            temporary folder that lives as long as the session.
        optimizations: the runtime's own graph optimizations.
        options: how to run.

    Raises:
        SessionError: the runtime refused the model; one line, the node named.
        RuntimeUnavailableError: ONNX Runtime, or an execution provider that was asked for, is not installed.
    """
    native_options = native_session_options(optimizations, options or SessionOptions())
    return load_session(model, native_options, options or SessionOptions())


def native_session_options(optimizations: Optimizations, options: SessionOptions) -> Any:
    """ONNX Runtime's own options object: quiet, with the libraries and configuration entries of `options`.

    Raises:
        SessionError: a library of custom operators cannot be registered.
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    runtime = onnx_runtime()
    native = runtime.SessionOptions()
    native.log_severity_level = _ERRORS_ONLY
    native.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _LEVELS[optimizations])
    native.intra_op_num_threads = options.threads
    for key, value in options.config.items():
        native.add_session_config_entry(key, value)
    for library in options.custom_ops:
        try:
            native.register_custom_ops_library(str(library))
        except Exception as error:  # the runtime's exceptions share no narrower base class
            refuse(f"cannot register the custom operators of {library}", error)
    return native


def keep_optimized_graph(native: Any, path: Path) -> None:
    """Lets a session write the graph that it runs to a file, its weights beside it, so that parsing it costs nothing."""
    native.optimized_model_filepath = str(path)
    native.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{path.stem}.data")
    native.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "256")


def load_session(model: ir.Model | Path, native_options: Any, options: SessionOptions) -> Session:
    """Loads a model with options object `native_options`; see `open_session`."""
    runtime = onnx_runtime()
    missing = [name for name in options.providers if name not in runtime.get_available_providers()]
    if missing:
        raise RuntimeUnavailableError(
            f"{missing[0]} is not in the installed onnxruntime, which has {', '.join(runtime.get_available_providers())}; "
            "for CUDA: pip install graphopt[gpu]"
        )
    source, owned = (str(model), None) if isinstance(model, Path) else _serialize(model, native_options)
    name = str(model) if isinstance(model, Path) else "the model"
    try:
        return Session(runtime.InferenceSession(source, native_options, providers=list(options.providers)), owned)
    except Exception as error:  # the runtime's exceptions share no narrower base class
        refuse(f"ONNX Runtime does not load {name}", error)


@functools.cache
def runtime_limits() -> Limits:
    """The newest opset of the standard domain and the newest IR version that load, found by probing tiny models."""
    ir_version = _newest(lambda version: _loads(opset=13, ir_version=version), range(7, _NEWEST_PROBED))
    opset = _newest(lambda version: _loads(opset=version, ir_version=ir_version), range(13, _NEWEST_PROBED))
    return Limits(opset=opset, ir_version=ir_version)


def _loads(opset: int, ir_version: int) -> bool:
    import onnx_ir as ir

    text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g (float[1] x) => (float[1] y) {{ y = Neg(x) }}'
    try:
        open_session(ir.from_onnx_text(text), "none", SessionOptions(threads=1))
    except SessionError:
        return False
    return True


def _newest(works: Any, versions: Iterable[int]) -> int:
    newest = 0
    for version in versions:
        if not works(version):
            break
        newest = version
    return newest


def _serialize(model: ir.Model, native_options: Any) -> tuple[str | bytes, Any]:
    """What a session is loaded from, and what it has to own for that."""
    # Imported here, so that a timing process pays for the runtime only.
    from graphopt.runtime import serialize

    if serialize.weight_bytes(model) <= serialize.IN_MEMORY_BYTES:
        return serialize.to_bytes(model), None
    parts = serialize.to_parts(model)
    if parts is not None:
        weights = [onnx_runtime().OrtValue.ortvalue_from_numpy(array) for array in parts.weights.values()]
        if weights:
            native_options.add_external_initializers(list(parts.weights), weights)
        if parts.folder is not None:
            native_options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(parts.folder))
        return parts.content, (parts.weights, weights)
    folder = serialize.to_folder(model)
    return str(Path(folder.name) / "model.onnx"), folder


def onnx_runtime() -> Any:
    """The runtime's module.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"ONNX Runtime cannot be imported ({error}); install it: pip install graphopt[cpu], or graphopt[gpu] for CUDA"
        ) from error


def refuse(what: str, error: Exception) -> Never:
    """Raises what the runtime raised as one line.

    Raises:
        SessionError: always, but for what is one already or says that memory is short.
    """
    if isinstance(error, (MemoryError, SessionError)):
        raise error
    raise SessionError(f"{what}: {shorten(str(error))}") from error


def shorten(message: str) -> str:
    """The runtime's message as one line: no status prefix, no source paths, at most 300 characters; node names stay."""
    text = " ".join(message.split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"(Load model from \S+ failed:)", "", text)
    text = re.sub(r"\S*/onnxruntime/\S+?:\d+ .*?\) (?=\S)", "", text, count=1)
    text = re.sub(r" ?Stacktrace:.*", "", text)
    return text.strip() if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3].strip() + "..."
