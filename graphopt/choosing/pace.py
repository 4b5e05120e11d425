"""Pace: which approximated layers take longer than they did before, by the runtime's own profiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.graph.edits import all_nodes
from graphopt.ledger import Drop, Rewrite
from graphopt.proof import Feed
from graphopt.runtime.profile import NodeTime, profile
from graphopt.runtime.session import SessionOptions

_SLOWER = 1.1
_NOTICEABLE = 2e-3
"""A layer is looked at where it takes so much longer, as a share of the whole run."""
_FUSED = 6
"""How many nodes after a layer's own the runtime may fuse into it."""
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_SUFFIXES = ("_nchwc", "_quant", "_nhwc", "_token_0")


def slow_layers(
    rewrites: Sequence[Rewrite], original: ir.Model, result: ir.Model, feeds: Sequence[Feed], options: SessionOptions
) -> list[Drop]:
    """The approximations that do not pay: what runs in their place takes longer, conversions included, than what ran before.

    Args:
        rewrites: approximations that the result holds.
        original: the model before them; their anchors are nodes of it.
        result: the model with them.
        feeds: what both run on.
        options: how they run.
    """
    landmarks = {rewrite.key.anchor: _chain(original, rewrite.key.anchor) for rewrite in rewrites}
    made = {node.name or "": {value.name or "" for value in node.outputs} for node in all_nodes(result)}
    added = {
        rewrite.key.anchor: landmarks[rewrite.key.anchor].union(rewrite.added, *(made.get(name, set()) for name in rewrite.added))
        for rewrite in rewrites
    }
    old_times, new_times = profile(original, feeds, options), profile(result, feeds, options)
    old, new = _by_layer(old_times, landmarks), _by_layer(new_times, added)
    least = _NOTICEABLE * sum(node.seconds for node in old_times)
    drops = []
    for rewrite in rewrites:
        anchor = rewrite.key.anchor
        if anchor in old and anchor in new and new[anchor] > max(_SLOWER * old[anchor], old[anchor] + least):
            drops.append(
                Drop(
                    rewrite.key._replace(rule=rewrite.form or rewrite.key.rule),
                    f"{_ms(new[anchor])} instead of {_ms(old[anchor])} in float",
                )
            )
    return drops


def _chain(model: ir.Model, name: str) -> set[str]:
    """What the runtime may call a layer: its node, and the values from its output on along which nothing branches off."""
    node = next((node for node in all_nodes(model) if node.name == name), None)
    found = {name}
    for _ in range(_FUSED):
        if node is None or not node.outputs:
            break
        value = node.outputs[0]
        found.update({node.name or "", value.name or ""})
        users = value.consumers()
        node = users[0] if len(users) == 1 and not any(_is_weighted(user) for user in users) else None
    return found - {""}


def _is_weighted(node: ir.Node) -> bool:
    """Whether a node has a weight of its own, and is another layer."""
    tensors = (ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None)
    return any(tensor is not None and len(tensor.shape) > 1 for tensor in tensors)


def _by_layer(times: Sequence[NodeTime], landmarks: Mapping[str, set[str]]) -> dict[str, float]:
    """Seconds by layer: of the nodes that bear one of its names, and of the conversions next to them."""
    owners = {name: layer for layer, names in landmarks.items() for name in names}
    readers: dict[str, NodeTime] = {name: node for node in reversed(times) for name in node.inputs}
    makers: dict[str, NodeTime] = {name: node for node in times for name in node.outputs}
    seconds: dict[str, float] = {}
    for node in times:
        owner = _owner(node, owners)
        if owner is None and node.operator in _CONVERSIONS:
            near = readers.get(node.outputs[0]) if node.operator != "DequantizeLinear" else makers.get(node.inputs[0])
            owner = None if near is None else _owner(near, owners)
        if owner is not None:
            seconds[owner] = seconds.get(owner, 0.0) + node.seconds
    return seconds


def _owner(node: NodeTime, owners: Mapping[str, str]) -> str | None:
    bare = node.name
    for suffix in _SUFFIXES:
        bare = bare.removesuffix(suffix)
    return next((owners[name] for name in (node.name, bare, *node.outputs) if name in owners), None)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
