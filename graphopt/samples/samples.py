"""A re-iterable, lazily read set of feeds that fit a model's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import SamplesError
from graphopt.graph.signature import Port, Signature, signature_of
from graphopt.samples import sizes, sources
from graphopt.samples.synthetic import Maker

Feed = dict[str, np.ndarray]
"""One inference's inputs, by input name."""


class Samples:
    """Feeds for a model; iterating again reads them again, and shapes may differ from one feed to the next.

    Attributes:
        description: where they come from, in words.
        is_synthetic: they are made up, so nothing may be calibrated on them.
    """

    def __init__(self, read: Callable[[], Iterator[Feed]], count: int, description: str, *, is_synthetic: bool = False) -> None:
        self._read = read
        self._count = count
        self.description = description
        self.is_synthetic = is_synthetic

    def __iter__(self) -> Iterator[Feed]:
        return self._read()

    def __len__(self) -> int:
        return self._count

    @classmethod
    def open(cls, source: str | Path | Iterable[Mapping[str, Any]], signature: Signature, limit: int | None = None) -> Samples:
        """Opens samples and checks the first one.

        Args:
            source: one of

                - an ``.npz`` file with an array per input, or an ``.npy`` file for a model of one input: the first axis counts
                  the samples, each feed has length 1 there (or the model's own fixed length); arrays with one axis more than
                  the input are split into items, and arrays for scalar inputs may be scalars;
                - a folder of ``.npz`` or ``.npy`` files: each file is one feed, as it is, in the order of their names;
                - a folder ``test_data_set_*`` as ONNX has it, or a folder of such folders;
                - ``"module:function"``: a function without arguments that returns any of the following;
                - an iterable of dicts. A sequence (``__len__`` and ``__getitem__``) is read lazily; an iterator is kept in memory.
            signature: what the model wants. Further arrays in a source, such as labels, are left out.
            limit: at most so many samples.

        Raises:
            SamplesError: there is nothing to read, or names, types, ranks or fixed lengths differ from what the model wants.
        """
        name, read, count = sources.open_source(source, signature, limit)
        if count == 0:
            raise SamplesError(f"{name} holds no samples")

        def checked() -> Iterator[Feed]:
            for index, feed in enumerate(islice(read(), limit)):
                yield _fit(feed, signature, f"{name}, sample {index}")

        samples = cls(checked, count if limit is None else min(count, limit), f"{min(count, limit or count)} samples from {name}")
        next(iter(samples))
        return samples

    @classmethod
    def synthetic(
        cls, model: ir.Model, shapes: Mapping[str, int] | Sequence[Mapping[str, int]] | None = None, count: int = 4, seed: int = 0
    ) -> Samples:
        """Makes up samples from the signature and the graph of a model.

        Integers stay within the tables that they index; masks are ones (every second one ends in zeros), positions count up,
        caches and states are zeros in the first sample; other floats are normal.

        Args:
            model: the model to feed.
            shapes: lengths of symbolic dimensions by name; where several are given, samples take turns. A dimension without
                a name is called ``INPUT.axisN``. What is left out takes its most plausible length.
            count: how many samples.
            seed: of the random generator; sample i depends on `seed` and i only.

        Raises:
            SamplesError: a name in `shapes` is not a symbolic dimension of the model, or an input is not a tensor.
        """
        signature = signature_of(model)
        given = [shapes or {}] if shapes is None or isinstance(shapes, Mapping) else list(shapes)
        assignments = [sizes.complete(signature, one, model) for one in given]
        maker = Maker(model, signature)

        def read() -> Iterator[Feed]:
            for index in range(count):
                yield maker.feed(assignments[index % len(assignments)], index, seed)

        return cls(read, count, f"{count} synthetic samples", is_synthetic=True)


def _fit(feed: Mapping[str, Any], signature: Signature, place: str) -> Feed:
    """The inputs that the model wants, as arrays, checked."""
    if not isinstance(feed, Mapping):
        raise SamplesError(f"{place} is a {type(feed).__name__}, not a dict of arrays by input name; the model wants {_wanted(signature)}")
    missing = [port.name for port in signature.inputs if port.name not in feed]
    if missing:
        have = ", ".join(map(str, feed)) or "nothing"
        raise SamplesError(f"{place} lacks {', '.join(missing)} (it has {have}); the model wants {_wanted(signature)}")
    return {port.name: _fit_port(np.asarray(feed[port.name]), port, place) for port in signature.inputs}


def _fit_port(array: np.ndarray, port: Port, place: str) -> np.ndarray:
    text = port.dtype == ir.DataType.STRING
    dtype = None if port.dtype is None else np.dtype(object if text else port.dtype.numpy())
    if dtype is not None and array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)  # npz files forget the types of ml_dtypes
    if text and array.dtype.kind in "US":
        array = array.astype(object)
    fits = (
        (dtype is None or array.dtype == dtype)
        and (port.shape is None or len(port.shape) == array.ndim)
        and all(not isinstance(want, int) or want == length for want, length in zip(port.shape or (), array.shape, strict=False))
    )
    if not fits:
        raise SamplesError(f"{place}: {port.name} is {array.dtype.name}{list(array.shape)}; the model wants {port}")
    return array


def _wanted(signature: Signature) -> str:
    return "; ".join(map(str, signature.inputs)) or "no inputs"
