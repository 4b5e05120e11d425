"""Tests of graphopt.samples and of graphopt.runtime.trial."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from graphopt.errors import SamplesError
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.trial import runnable_samples
from graphopt.samples import Samples, plausible_shapes

TWO_INPUTS = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x, int64[N] k) => (float[N, 2] y) { y = Identity(x) }'
IMAGE = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Neg(x) }'
EMBEDDING = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask, int64[batch, sequence] token_type_ids,
   int64[batch, sequence] position_ids, int64 sr, bool flag, float[1, batch, 4] h)
=> (float[batch, sequence, 2] y, float[1, batch, 4] hn, bool e)
<float[7, 2] table = {0,1,2,3,4,5,6,7,8,9,10,11,12,13}, int64 two = {2}, int64 rate = {16000}>
{ wide = Cast<to=7>(input_ids) shifted = Add(wide, two) y = Gather(table, shifted) hn = Identity(h) e = Equal(sr, rate) }"""


def model_of(text: str) -> ir.Model:
    """A model in ONNX's text format."""
    return ir.from_onnx_text(text)


def feeds(start: int = 0) -> list[dict[str, np.ndarray]]:
    """Three feeds for TWO_INPUTS; feed i holds the number `start` + i."""
    return [{"x": np.full((1, 2), start + i, np.float32), "k": np.array([start + i])} for i in range(3)]


def given_by_function() -> Iterator[dict[str, np.ndarray]]:
    """Samples from a Python function, for "module:function"."""
    yield from feeds()


def write(folder: Path, kind: str) -> Path | str:
    """Writes `feeds()` in one of the accepted layouts."""
    if kind == "npz":
        np.savez_compressed(
            folder / "all.npz", x=np.concatenate([f["x"] for f in feeds()]), k=np.concatenate([f["k"] for f in feeds()]), label=np.ones(3)
        )
        return folder / "all.npz"
    if kind == "stacked":
        np.savez(folder / "all.npz", x=np.asfortranarray(np.stack([f["x"] for f in feeds()])), k=np.stack([f["k"] for f in feeds()]))
        return str(folder / "all.npz")
    for i, feed in enumerate(feeds()):
        if kind == "folder":
            np.savez(folder / f"feed_{9 + i}.npz", **feed)  # type: ignore[arg-type]
        else:
            (folder / f"test_data_set_{9 + i}").mkdir()
            for position, name in enumerate(("x", "k")):
                tensor = onnx.numpy_helper.from_array(feed[name], name if kind == "named" else "")
                (folder / f"test_data_set_{9 + i}" / f"input_{position}.pb").write_bytes(tensor.SerializeToString())
    return folder


@pytest.mark.parametrize("kind", ["npz", "stacked", "folder", "test_data", "named"])
def test_layouts_yield_the_same_feeds(tmp_path: Path, kind: str) -> None:
    """Every layout of files yields the same feeds, twice over, and `limit` cuts them."""
    signature = signature_of(model_of(TWO_INPUTS))
    source = write(tmp_path, kind)
    samples = Samples.open(source, signature)
    for _ in range(2):
        for found, expected in zip(samples, feeds(), strict=True):
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) and found[name].shape == expected[name].shape for name in expected)
    assert (len(samples), samples.is_synthetic) == (3, False)
    limited = Samples.open(source, signature, limit=2)
    assert len(limited) == len(list(limited)) == 2


def test_python_sources() -> None:
    """A function named by its module, a list and an iterator are samples that can be read twice."""
    signature = signature_of(model_of(TWO_INPUTS))
    for source in (f"{__name__}:given_by_function", feeds(), iter(feeds())):
        samples = Samples.open(source, signature)
        assert [int(feed["k"][0]) for feed in (*samples, *samples)] == [0, 1, 2, 0, 1, 2]


def test_npy_file_feeds_the_only_input(tmp_path: Path) -> None:
    """A model of one input takes an .npy file, split along the first axis."""
    np.save(tmp_path / "x.npy", np.zeros((5, 3, 4, 4), np.float32))
    assert [feed["x"].shape for feed in Samples.open(tmp_path / "x.npy", signature_of(model_of(IMAGE)))] == [(1, 3, 4, 4)] * 5


def test_fixed_batch_is_kept(tmp_path: Path) -> None:
    """Where the model fixes the first axis at 2, each feed takes two rows."""
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 3), np.float32))
    model = model_of('<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }')
    assert [feed["x"].shape for feed in Samples.open(tmp_path / "x.npz", signature_of(model))] == [(2, 3)] * 3


@pytest.mark.parametrize(
    ("feed", "complaint"),
    [
        ({"x": np.zeros((1, 2), np.float32)}, r"lacks k .*k: int64\[N\]"),
        ({"x": np.zeros((1, 2)), "k": np.zeros(1, np.int64)}, r"x is float64\[1, 2\]; the model wants x: float\[N, 2\]"),
        ({"x": np.zeros(2, np.float32), "k": np.zeros(1, np.int64)}, r"x is float32\[2\]"),
        ({"x": np.zeros((1, 3), np.float32), "k": np.zeros(1, np.int64)}, r"x is float32\[1, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(feed: dict[str, np.ndarray], complaint: str) -> None:
    """Missing names, other types, ranks and lengths are errors that show what the model wants."""
    with pytest.raises(SamplesError, match=complaint):
        Samples.open([feed], signature_of(model_of(TWO_INPUTS)))


def test_sources_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    """A missing file, an empty folder, a broken file, unequal counts, no samples and no such function are errors of one line."""
    signature = signature_of(model_of(TWO_INPUTS))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "unequal.npz", x=np.zeros((3, 2), np.float32), k=np.zeros(2, np.int64))
    paths = [tmp_path / name for name in ("no.npz", "empty", "broken.npz", "unequal.npz")]
    sources: list[Any] = [*paths, [], "no_such_module:function"]
    for source in sources:
        with pytest.raises(SamplesError) as error:
            Samples.open(source, signature)
        assert "\n" not in str(error.value)


def test_synthetic_values_follow_graph_and_names() -> None:
    """Ids stay within their table minus an offset, scalars that are compared take the constant, masks, positions and states fit."""
    first, second = Samples.synthetic(model_of(EMBEDDING), {"batch": 3, "sequence": 40}, count=2)
    assert first["input_ids"].shape == (3, 40)
    assert set(np.unique(first["input_ids"])) == set(range(5))
    assert first["attention_mask"].all()
    assert second["attention_mask"].sum(1).tolist() == [30] * 3
    assert not first["token_type_ids"].any()
    assert first["position_ids"][1].tolist() == list(range(40))
    assert (first["sr"].item(), first["flag"].item()) == (16000, True)
    assert not first["h"].any()
    assert second["h"].any()


def test_synthetic_samples_are_repeatable() -> None:
    """The same seed gives the same samples, another seed gives others, and each sample differs from the next."""
    model = model_of(IMAGE)
    samples = Samples.synthetic(model, count=3, seed=1)
    again, other = Samples.synthetic(model, count=3, seed=1), Samples.synthetic(model, count=3, seed=2)
    assert samples.is_synthetic
    for one, same, different in zip(samples, again, other, strict=True):
        np.testing.assert_array_equal(one["x"], same["x"])
        assert not np.array_equal(one["x"], different["x"])
    assert len({feed["x"].tobytes() for feed in samples}) == 3


def test_unknown_dimension_is_refused() -> None:
    """A name that is no dimension of the model is an error that lists those it has."""
    with pytest.raises(SamplesError, match=r"no dimension 'Q'; it has N, H, W"):
        Samples.synthetic(model_of(IMAGE), {"Q": 1})


def test_plausible_shapes_differ_first() -> None:
    """The first two assignments differ in every dimension, and a cache, its mask and new positions fit together."""
    first, second = plausible_shapes(model_of(IMAGE))[:2]
    assert all(first[name] != second[name] for name in ("N", "H", "W"))
    cached = model_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[B, S] input_ids, int64[B, T] attention_mask, float[B, 2, P, 4] past_key) '
        "=> (int64[B, S] y) { y = Identity(input_ids) }"
    )
    assert all(lengths["T"] == lengths["S"] + lengths["P"] for lengths in plausible_shapes(cached))


def test_dimensions_without_a_name_and_from_weights() -> None:
    """A dimension without a name gets one, and a weight that reads the input says how long it is."""
    model = model_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[?, ?] x) => (float[?, 1] y) <float[5, 1] w = {1,2,3,4,5}> { y = MatMul(x, w) }'
    )
    assert plausible_shapes(model)[0] == {"x.axis0": 2, "x.axis1": 5}


def test_trial_finds_sizes_that_run() -> None:
    """A model that only takes lengths that are multiples of 64 gets such lengths, and a hopeless one an error that says why."""
    model = model_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[B, S] x) => (float[A, C] y) <int64[2] s = {-1, 64}> { y = Reshape(x, s) }'
    )
    assert all(feed["x"].size % 64 == 0 for feed in runnable_samples(model, {"B": 1}, SessionOptions(threads=1)))
    with pytest.raises(SamplesError, match="open dimensions: B, S"):
        runnable_samples(model, {"B": 1, "S": 63})


def zoo_models() -> list[Path]:
    """Models of the folders that GRAPHOPT_ZOO and GRAPHOPT_ARCH name."""
    roots = [Path(os.environ[name]) for name in ("GRAPHOPT_ZOO", "GRAPHOPT_ARCH") if name in os.environ]
    return [path for root in roots for path in sorted(root.glob("*/model*.onnx"))]


@pytest.mark.skipif(not zoo_models(), reason="neither GRAPHOPT_ZOO nor GRAPHOPT_ARCH names a folder of models")
@pytest.mark.parametrize("path", zoo_models(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_zoo_models_run_on_synthetic_samples(path: Path) -> None:
    """Every model of the zoo runs on made-up samples, and its outputs are finite."""
    model = ir.load(path)
    session = open_session(path)
    for feed in runnable_samples(model, count=2):
        assert all(np.isfinite(output).all() for output in session.run(feed).values())
