"""Sessions of packed models, without a file in between."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from graphopt.container import open_container
from graphopt.errors import SessionError
from graphopt.runtime.session import onnx_runtime, refuse

_TAKE_DATA = "add_external_initializers_from_files_in_memory"
"""The method of session options that takes data files from memory."""


def load_packed(path: str | Path, sess_options: Any = None, **options: Any) -> Any:
    """Loads a packed model into ONNX Runtime as if it were the file that it was packed from.

    The model is unpacked in memory, its data files too, and nothing is written. While the session is made, the model is
    held once in addition to what the runtime needs.

    Args:
        path: a container that ``graphopt pack`` wrote.
        sess_options: an ``onnxruntime.SessionOptions`` for this session alone, which is told about the data files.
        **options: what else ``onnxruntime.InferenceSession`` takes: ``providers``, ``provider_options`` and so on.

    Returns:
        The ``onnxruntime.InferenceSession``.

    Raises:
        ContainerError: this is no container, or a damaged one.
        SessionError: the runtime refused the model.
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    runtime = onnx_runtime()
    model, data = _unpacked(path)
    if data:
        sess_options = sess_options or runtime.SessionOptions()
        if not hasattr(sess_options, _TAKE_DATA):
            raise SessionError(f"{path}: ONNX Runtime {runtime.__version__} takes no data files from memory; unpack it, or install 1.24")
        getattr(sess_options, _TAKE_DATA)(list(data), list(data.values()), [content.nbytes for content in data.values()])
    try:
        return runtime.InferenceSession(model, sess_options, **options)
    except Exception as error:  # the runtime's exceptions share no narrower base class
        refuse(f"ONNX Runtime does not load {path}", error)


def _unpacked(path: str | Path) -> tuple[bytes, dict[str, memoryview]]:
    """The bytes of the model file, and those of its data files by location."""
    contents: dict[str, io.BytesIO] = {}
    with open_container(path) as container:
        for entry, pieces in container.contents():
            contents[entry.location] = io.BytesIO()
            contents[entry.location].writelines(pieces)
    model = contents.pop("").getvalue()  # shares the memory
    return model, {location: content.getbuffer() for location, content in contents.items()}
