"""Embedding tables in few bits, heads that are tied to them included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.constants import choose, constants_of
from graphopt.passes.quantize.replacing import take_place
from graphopt.passes.quantize.tables import Table, tables_of
from graphopt.passes.racing import remembered, seconds_of
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Quantized, Scheme, fit_extremes, round_to_nearest
from graphopt.solve.metric import Metric
from graphopt.targets import TARGETS, Target
from graphopt.targets.emit import (
    BLOCKS,
    DYNAMIC_QUANTIZE_MATMUL,
    GATHER_BLOCK_QUANTIZED,
    MATMUL_NBITS,
    gather_block_quantized,
    packed_table,
    table_dynamic_matmul,
    table_matmul_nbits,
)

_FORMS = {"tied-rows": DYNAMIC_QUANTIZE_MATMUL, "tied-blocks": MATMUL_NBITS, "table": ""}
"""What multiplies with a table in each form; ``table`` is one without heads."""

_SLOWEST = 1.03
"""A tied form may take this many times as long as float: as much as measurements of one machine differ."""
_LARGEST_SHARE = 0.01
"""Of a run of the model: the time by which gathering from a quantized table may be slower than from a float one."""
_ROWS = 32
"""Rows that are taken to be gathered and multiplied where no sample tells."""


@dataclass(frozen=True)
class Embeddings(GuidedPass):
    """Replaces Gather from a float table with GatherBlockQuantized from one in 8, 4 or 2 bits, and a tied head with a product in integers.

    Applies to float32 matrices that rows are gathered from. Where a MatMul or Gemm multiplies with the same table, transposed, even
    with a copy of it, the table is stored once and read by both: as MatMulNBits (blocks) or DynamicQuantizeMatMul (8 bits, a scale per
    row), whichever is faster here, where either is faster than float. Scales have the least squared error. Approximate: 8 bits lose
    about half a percent of a row (in norm). Takes a quarter of the bytes in the file and in memory; gathering itself becomes slower,
    so that tables stay in float where that would take more than a hundredth of the model's time.

    Attributes:
        bits: of an element.
        block: elements of a row that share a scale.
        include: globs on the names of tables or nodes; all tables where empty.
        exclude: globs on those that stay in float.
        min_size: elements from which a table is worth it.
    """

    name: ClassVar[str] = "embeddings"
    role: ClassVar[Role] = "approximate"
    steps: ClassVar[dict[str, str]] = {
        "tied-rows": "Replaces Gather and a tied head with GatherBlockQuantized and DynamicQuantizeMatMul.",
        "tied-blocks": "Replaces Gather and a tied head with GatherBlockQuantized and MatMulNBits.",
        "table": "Replaces Gather with GatherBlockQuantized.",
    }

    bits: Literal[2, 4, 8] = 8
    block: Literal[16, 32, 64, 128] = 128
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all tables that the target has kernels for, those that lose least first."""
        target, view = TARGETS[context.target], View(model)
        tables = self._tables(model, view)
        if tables and not target.runs(GATHER_BLOCK_QUANTIZED, ir.DataType.UINT8, view.opset):
            ledger.note(f"{self.name}: the target {target.name} has no kernel for {GATHER_BLOCK_QUANTIZED}")
            return False
        planned = []
        for table in tables:
            form = self._form(model, table, view, context)
            if form is not None:
                planned.append((table, form, *self._solved(table, form, view, context)))
        names, changed = Names(model), False
        for table, form, weight, error in sorted(planned, key=lambda one: one[3]):
            key = self._key(table, form)
            if ledger.allow(key):
                removed, added = _apply(table, form, weight, names)
                kernels = (GATHER_BLOCK_QUANTIZED,) * len(table.gathers) + (_FORMS[form],) * (len(table.heads) if _FORMS[form] else 0)
                ledger.record(ledger.Rewrite(key, removed, added, kernels=kernels, predicted_error=error))
                changed = True
        if changed:
            model.graph.opset_imports.setdefault(GATHER_BLOCK_QUANTIZED.partition("::")[0], 1)
        return changed

    def _key(self, table: Table, form: str) -> ledger.Key:
        return ledger.Key(self.name, form, table.gathers[0].name or "")

    def _tables(self, model: ir.Model, view: View) -> list[Table]:
        constants = constants_of(model, ir.DataType.FLOAT)
        chosen = {one.value for one in choose(constants, self.include, self.exclude, self.min_size)}
        found = []
        for table in tables_of(constants, view):
            if table.constant.value in chosen:
                obstacle = self._obstacle(table, view)
                if obstacle:
                    ledger.miss(self._key(table, "table"), obstacle)
                else:
                    found.append(table)
        return found

    def _obstacle(self, table: Table, view: View) -> str:
        """Why a table cannot be quantized, or an empty string."""
        if table.others:
            return f"{table.others[0]} reads the float table too"
        if table.constant.shape[1] * self.bits % 8:
            return "its rows do not fill whole bytes"
        array = view.constant(table.constant.value)
        return "" if array is not None and np.isfinite(array).all() else "it holds NaN or infinity"

    def _form(self, model: ir.Model, table: Table, view: View, context: Context) -> str | None:
        """The form that a table takes; None where it stays in float."""
        for form in self._tied_forms(model, table, view, context) if table.heads else ():
            return form
        if any(head.shares for head in table.heads):
            ledger.miss(self._key(table, "table"), "its head stays in float and reads the float table")
            return None
        key = self._key(table, "table")
        if ledger.denies(key):
            return None
        plain = Table(table.constant, table.gathers, (), ())
        if context.measures and (reason := self._slowness(model, plain, view, context)):
            ledger.decline(key, reason)
            return None
        return "table"

    def _tied_forms(self, model: ir.Model, table: Table, view: View, context: Context) -> list[str]:
        """The forms for a table with heads that are faster than float, the fastest first; where nothing is measured all there are."""
        target = TARGETS[context.target]
        forms = [form for form in _FORMS if form != "table" and self._exists(form, table, target, view)]
        forms = [form for form in forms if not ledger.denies(self._key(table, form))]
        if not forms or not context.measures:
            return forms
        key = (self.name, table.constant.name, *forms)
        before, *after = remembered(context, key, lambda: self._race(table, forms, view, context))
        ranked = sorted(zip(after, forms, strict=True))
        fastest = ranked[0][0]
        kept = []
        for seconds, form in ranked:
            if seconds > before * _SLOWEST:
                ledger.decline(self._key(table, form), f"{_ms(seconds)} instead of {_ms(before)} in float")
            elif seconds > fastest:
                ledger.decline(self._key(table, form), f"{_ms(seconds)} instead of {_ms(fastest)} as {ranked[0][1]}")
            else:
                kept.append(form)
        return kept

    def _exists(self, form: str, table: Table, target: Target, view: View) -> bool:
        if not target.runs(_FORMS[form], ir.DataType.FLOAT, view.opset):
            return False
        return self.bits == 8 if form == "tied-rows" else target.packs(self.bits) and self._block(table, form) is not None

    def _block(self, table: Table, form: str) -> int | None:
        """How many elements share a scale: the largest block up to the wished one that fills the rows of a tied table."""
        if form == "table":
            return self.block
        width = table.constant.shape[1]
        return max((block for block in BLOCKS if block <= self.block and width % block == 0), default=None)

    def _slowness(self, model: ir.Model, table: Table, view: View, context: Context) -> str:
        """Why gathering would take too long, or an empty string."""
        key = (self.name, table.constant.name, "table")
        before, after = remembered(context, key, lambda: self._race(table, ["table"], view, context))
        if after <= before:
            return ""
        sample = next(iter(context.samples))
        [whole] = remembered(context, (self.name, "model"), lambda: seconds_of([model], sample, context.options))
        if after - before <= _LARGEST_SHARE * whole:
            return ""
        return f"{_ms(after)} instead of {_ms(before)} in float, of {_ms(whole)} for the whole model"

    def _race(self, table: Table, forms: Sequence[str], view: View, context: Context) -> list[float]:
        """The times of a table in float, and in some forms."""
        small = _excerpt(table, view, context)
        return seconds_of([small, *(self._quantized(small, form) for form in forms)], _feed(small), context.options)

    def _scheme(self, table: Table, form: str) -> Scheme:
        block = self._block(table, form)
        assert block is not None, "the form exists"
        return Scheme(8) if form == "tied-rows" else Scheme(self.bits, per=block, mirrored=True)

    def _solved(self, table: Table, form: str, view: View, context: Context) -> tuple[Quantized, float]:
        """A table on its grid, and the relative error."""
        scheme, tensor = self._scheme(table, form), ir.convenience.get_const_tensor(table.constant.value)
        key = (self.name, table.constant.name, scheme)
        before = context.solved.get(key)  # clones share their tensors
        if before is None or before[0] is not tensor:
            array = view.constant(table.constant.value)
            assert array is not None, "it would have been an obstacle"
            weight = gptq(array[None], Metric(None), scheme)
            size = float(np.square(array).sum())
            error = (float(np.square(weight.weight[0] - array).sum()) / size) ** 0.5 if size else 0.0
            before = context.solved[key] = (tensor, weight, error)
        return before[1:]

    def _quantized(self, excerpt: ir.Model, form: str) -> ir.Model:
        """An excerpt with its table in a form, on any grid, since only its time is of interest."""
        model = excerpt.clone()
        view = View(model)
        [table] = tables_of(constants_of(model, ir.DataType.FLOAT), view)
        array = view.constant(table.constant.value)
        assert array is not None, "given to it"
        grid = fit_extremes(array[None], self._scheme(table, form))
        _apply(table, form, round_to_nearest(array[None], grid), Names(model))
        model.graph.opset_imports["com.microsoft"] = 1
        return model


def _apply(table: Table, form: str, weight: Quantized, names: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Puts a quantized table in the place of a float one; returns the names of the nodes that went, and that came."""
    builder = Builder(table.constant.anchor, names)
    packed = packed_table(builder, weight, table.constant.name)
    removed: list[str] = []
    added: list[str] = []
    for gather in table.gathers:
        indices = gather.inputs[1]
        assert indices is not None, "Gather has indices"
        op = Builder(gather, names)
        removed += take_place(gather, [gather_block_quantized(op, packed, indices)], op)
        added += [node.name or "" for node in op.added]
    product = {"tied-rows": table_dynamic_matmul, "tied-blocks": table_matmul_nbits}.get(form)
    for head in table.heads if product is not None else ():
        assert product is not None, "just asked"
        op = Builder(head.node, names)
        removed += take_place(head.node, [product(op, head.data, packed, head.bias)], op)
        added += [node.name or "" for node in op.added]
    return tuple(removed), tuple(added)


def _excerpt(table: Table, view: View, context: Context) -> ir.Model:
    """A model of one Gather from a table, and one product with it where it has heads, at the sizes that samples have."""
    tensor = ir.convenience.get_const_tensor(table.constant.value)
    weight = ir.val("table", ir.DataType.FLOAT, table.constant.shape, const_value=tensor)
    indices = table.gathers[0].inputs[1]
    assert indices is not None, "Gather has indices"
    shape = context.shapes.get(indices.name or "", (_ROWS,))
    inputs = [ir.val("indices", view.dtype(indices) or ir.DataType.INT64, shape)]
    nodes = [ir.node("Gather", [weight, inputs[0]], name="gather")]
    if table.heads:
        width = table.constant.shape[1]
        data = context.shapes.get(table.heads[0].data.name or "", (_ROWS, width))
        inputs.append(ir.val("data", ir.DataType.FLOAT, data))
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name="turned")
        nodes += [turned, ir.node("MatMul", [inputs[1], turned.outputs[0]], name="head")]
    outputs = [nodes[0].outputs[0], *([nodes[-1].outputs[0]] if table.heads else [])]
    for number, value in enumerate(node.outputs[0] for node in nodes):
        value.name, value.dtype = f"value_{number}", ir.DataType.FLOAT
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=[weight], opset_imports={"": view.opset}, name="excerpt")
    return ir.Model(graph, ir_version=8)


def _feed(excerpt: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Rows from all over the table, and random data."""
    generator = np.random.default_rng(0)
    rows = excerpt.graph.initializers["table"].shape
    assert rows is not None, "given to it"
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for value in excerpt.graph.inputs:
        assert value.shape is not None, "given to it"
        assert value.dtype is not None, "given to it"
        shape: Sequence[int] = value.shape.numpy()
        numbers = generator.integers(0, rows.numpy()[0], shape) if value.name == "indices" else generator.normal(size=shape)
        feed[value.name or ""] = numbers.astype(value.dtype.numpy())
    return feed


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
