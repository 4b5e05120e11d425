"""Tests of sums of 8-bit products that saturate where the processor adds them in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.choosing import isa
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.passes.base import Context
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.saturation import PAIR_LIMIT, at_risk, largest_pair_sums
from graphopt.passes.quantize.static import Static
from graphopt.samples import Samples
from graphopt.stage import Stage
from tests.helpers import parse


def dense(weight: np.ndarray[Any, Any]) -> ir.Model:
    """One linear layer."""
    model = parse("(float[n, 4] x) => (float[n, 2] y) { [mm] y = MatMul(x, w) }")
    [value] = [value for value in model.graph[0].inputs if value is not None and value.name == "w"]
    value.const_value = ir.tensor(weight.astype(np.float32), name="w")
    model.graph.register_initializer(value)
    return model


def context_of(model: ir.Model, x: np.ndarray[Any, Any]) -> Context:
    """A context with one sample."""
    return Context(Samples.open([{"x": x.astype(np.float32)}], signature_of(model)), "cpu")


def pair_sum(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> int:
    """By hand, for data from 0 on: the largest sum of neighbouring products of codes."""
    data_codes = np.rint(x / (x.max() / 255)).astype(int)
    codes = np.rint(weight / (np.abs(weight).max(axis=0) / 127)).astype(int)
    products = data_codes[:, :, None] * codes
    return int(np.abs(products[:, 0::2] + products[:, 1::2]).max())


def test_pair_sums() -> None:
    """The largest sum of two neighbouring products is that of the codes by hand, whatever is saturated."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        x, weight = generator.uniform(0, 1, size=(6, 4)), generator.normal(size=(4, 2))
        model = dense(weight)
        context = context_of(model, x)
        expected = pair_sum(x, weight)
        found = largest_pair_sums(model, list(layers_of(model)), context)["mm"]
        assert found == expected or max(found, expected) <= 255 * 127  # of opposite signs nobody needs to know exactly
        assert list(at_risk(model, list(layers_of(model)), context)) == (["mm"] if expected > PAIR_LIMIT else [])


def test_layers_at_risk_are_cured() -> None:
    """Layers at risk get weights of 7 bits; others stay as they are."""
    risky = dense(np.array([[1, 1], [1, 1], [0.1, 0.1], [0.1, 0.1]]))
    passes = (Static(), Dynamic(min_size=0))
    [stage] = isa.safe_from_saturation([Stage(passes, context_of(risky, np.ones((2, 4))))], risky)
    assert stage.passes == (Static(narrow=("mm",)), Dynamic(min_size=0, narrow=("mm",), forms=("channels",)))
    harmless = dense(np.array([[1, 1], [-1, -1], [0.1, 0.1], [0.1, 0.1]]))
    [stage] = isa.safe_from_saturation([Stage(passes, context_of(harmless, np.ones((2, 4))))], harmless)
    assert stage.passes == (Static(), Dynamic(min_size=0, forms=("channels",)))
