"""Pointwise convolutions work on images before they are enlarged."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.affine import Affine
from tests.helpers import assert_rewritten, misses


def numbers(count: int) -> str:
    """Constants for a text."""
    return "{" + ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).normal(size=count)) + "}"


def graph(body: str, channels: int = 4, outputs: int = 4, window: int = 1, scale: int = 2) -> str:
    """A convolution of an enlarged image and of another one of its size."""
    weight = f"float[{outputs},{channels},{window},{window}] w = {numbers(outputs * channels * window**2)}"
    bias = f"float[{outputs}] b = {numbers(outputs)}"
    scales = f"float[4] s = {{1, 1, {scale}, {scale}}}"
    return f"(float[n,4,6,6] x, float[n,2,12,12] z) => (float[c,d,e,f] y) <{weight}, {bias}, {scales}> {{ {body} }}"


@pytest.mark.parametrize("mode", ['"nearest"', '"linear"'])
@pytest.mark.parametrize("coordinates", ['"half_pixel"', '"align_corners"', '"asymmetric"', '"pytorch_half_pixel"'])
def test_an_enlarged_image_is_convolved_before(mode: str, coordinates: str) -> None:
    """By weights that sum to one the bias stays what it is."""
    resize = f"Resize<mode = {mode}, coordinate_transformation_mode = {coordinates}>"
    assert_rewritten(graph(f"r = {resize}(x, , s) y = Conv(r, w, b)"), [Affine()], "Conv Resize")


def test_of_joined_images_each_is_convolved_by_itself() -> None:
    """Their sum has the bias once."""
    body = 'r = Resize<mode = "linear">(x, , s) c = Concat<axis = 1>(r, z) y = Conv(c, w, b)'
    assert_rewritten(graph(body, channels=6, outputs=2), [Affine()], "Conv Conv Resize Sum")


RESIZE = 'r = Resize<mode = "linear">(x, , s)'


@pytest.mark.parametrize(
    "text",
    [
        graph(f"{RESIZE} y = Conv(r, w, b)", window=3),
        graph(f"{RESIZE} y = Conv<strides = [2, 2]>(r, w, b)"),
        graph(f"{RESIZE} y = Conv<pads = [1, 1, 1, 1]>(r, w, b)"),
        graph('r = Resize<mode = "cubic">(x, , s) y = Conv(r, w, b)'),
        graph(f"{RESIZE} y = Conv(r, w, b)", scale=1),
    ],
    ids=["window", "strides", "pads", "cubic", "same size"],
)
def test_other_convolutions_stay_behind(text: str) -> None:
    """Where the two may not change places."""
    assert_rewritten(text, [Affine()], "Resize Conv")


def test_more_channels_are_not_enlarged() -> None:
    """A Resize takes longer than a convolution that makes its channels."""
    assert "takes longer" in misses(graph(f"{RESIZE} y = Conv(r, w, b)", outputs=64), Affine())["convolve-before-resizing"]


def test_sizes_that_name_the_channels_stay() -> None:
    """A Resize to [n, 4, 12, 12] cannot make two channels."""
    body = 'sizes = Constant<value_ints = [1, 4, 12, 12]>() r = Resize<mode = "linear">(x, , , sizes) y = Conv(r, w, b)'
    text = graph(body, outputs=2).replace("[n,", "[1,")
    assert "names another number" in misses(text, Affine())["convolve-before-resizing"]
