"""The rule engine: tables of local rewrites, run to a fixed point in time linear in the number of nodes.

A rule is a function of a node and a :class:`View` that answers ``None`` (not my place), a :class:`Miss` (nearly: which
condition failed) or a :class:`Change` (how to build the replacement). It must not touch the graph itself: the engine
first asks the ledger, and builds only what is allowed. Rules are indexed by operator; a worklist visits again only what
a change may have opened up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import PassError
from graphopt.graph.edits import Builder, Names, all_nodes, can_stand_for, nested, remove_dead, remove_node, replace_value
from graphopt.graph.view import View, operator_of
from graphopt.passes.base import Pass
from graphopt.targets import TARGETS


@dataclass(frozen=True)
class Change:
    """A replacement that a rule proposes for all outputs of its anchor.

    Attributes:
        build: makes the new nodes and returns, for each output of the anchor, the value that takes its place. It may
            return values that exist already. An output that nobody uses may get None.
        reason: why, where the rule's docstring does not say it all.
        kernels: the kernels (``domain::operator``) that are planned to run in its place, where the form was chosen for them.
    """

    build: Callable[[Builder], ir.Value | Sequence[ir.Value | None]]
    reason: str = ""
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Miss:
    """A rule's anchor matched, but a condition failed.

    Attributes:
        reason: which condition, in words that a user can act on.
    """

    reason: str


RuleFunction = Callable[[ir.Node, View], Change | Miss | None]


@dataclass(frozen=True)
class Rule:
    """A line of a pass's table.

    Attributes:
        function: the rule itself.
        operators: the anchors it looks at: ``Conv``, or ``com.microsoft::Gelu``; ``*`` for every node.
        targets: where it applies, in a pass that is made for a target; everywhere where empty.
    """

    function: RuleFunction
    operators: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The function's name with hyphens, as the ledger and ``--skip`` spell it."""
        return self.function.__name__.replace("_", "-")


def rule(function: RuleFunction, *operators: str, targets: tuple[str, ...] = ()) -> Rule:
    """Makes a line of a table: ``rule(cancel_transposes, "Transpose")``."""
    return Rule(function, operators, targets)


@dataclass(frozen=True)
class RulePass(Pass):
    """An exact pass that consists of a table of rules.

    Attributes:
        rules: the table. Where several rules look at an operator they are tried in its order.
    """

    rules: ClassVar[tuple[Rule, ...]]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the table to its fixed point over the main graph and all subgraphs; O(nodes + changes)."""
        for function in model.functions.values():
            ledger.note(f"{self.name}: function {function.name} was passed by (rules do not look into functions)")
        return ir.passes.PassResult(model, _Rewriter(self, model).run())


@dataclass(frozen=True)
class TargetedPass(RulePass):
    """A pass of rules that choose forms for a target; ``view.runs`` tells them what it has kernels for.

    Attributes:
        target: what the result is made for; a recipe's own target where it is not given.
    """

    target: Literal["cpu", "portable", "cuda"] = "cpu"


def rule_names(kind: type) -> tuple[str, ...]:
    """The names of a pass's rules, or of its steps where it has no table."""
    return tuple(line.name for line in getattr(kind, "rules", ())) or tuple(getattr(kind, "steps", ()))


class _Worklist:
    """Nodes to look at, first in first out, each at most once at a time."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._queue: deque[ir.Node] = deque()
        self._waiting: set[ir.Node] = set()
        self.add(nodes)

    def add(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            if node not in self._waiting:
                self._waiting.add(node)
                self._queue.append(node)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def pop(self) -> ir.Node:
        node = self._queue.popleft()
        self._waiting.discard(node)
        return node


class _Rewriter:
    """One run of a table over one model."""

    def __init__(self, owner: RulePass, model: ir.Model) -> None:
        target = TARGETS[owner.target] if isinstance(owner, TargetedPass) else None
        self._owner, self._names, self._view = owner.name, Names(model), View(model, target)
        self._imports = model.graph.opset_imports
        self._by_operator: dict[str, list[Rule]] = {}
        for line in owner.rules:
            if target is not None and line.targets and target.name not in line.targets:
                continue
            for operator in line.operators:
                self._by_operator.setdefault(operator, []).append(line)
        nodes = list(all_nodes(model))
        self._worklist = _Worklist(nodes)
        # A table whose rules undo each other would run for ever; no sound table comes near this bound.
        self._budget = 100 * len(nodes) + 1000
        self._removed: set[ir.Node] = set()

    def run(self) -> bool:
        changed = False
        while self._worklist:
            node = self._worklist.pop()
            if node not in self._removed and self._visit(node):
                changed = True
        return changed

    def _visit(self, node: ir.Node) -> bool:
        for line in (*self._by_operator.get(operator_of(node), ()), *self._by_operator.get("*", ())):
            key = ledger.Key(self._owner, line.name, node.name or "")
            if ledger.denies(key):  # a rule that fails at this place must not be asked again
                continue
            try:
                answer = line.function(node, self._view)
                if isinstance(answer, Miss):
                    ledger.miss(key, answer.reason)
                elif answer is not None and ledger.allow(key):
                    self._apply(node, answer, key)
                    return True
            except RuleError:
                raise
            except Exception as error:
                raise RuleError(key, error) from error
        return False

    def _apply(self, node: ir.Node, change: Change, key: ledger.Key) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise RuleError(key._replace(anchor=""), PassError(f"the rule does not come to an end; skip it with --skip {key.rule}"))
        builder = Builder(node, self._names)
        built = change.build(builder)
        replacements = (built,) if isinstance(built, ir.Value) else tuple(built)
        self._import(builder.added)
        merged = [self._replace(node, old, new, builder) for old, new in zip(node.outputs, replacements, strict=True)]
        gone = self._remove(node, builder)
        self._removed.update(gone)
        added = [n for n in builder.added if n not in self._removed]
        self._worklist.add(added)
        names = tuple(n.name or "" for n in gone if n not in builder.added)
        ledger.record(
            ledger.Rewrite(
                key,
                removed=names,
                added=tuple(n.name or "" for n in added),
                reason=change.reason,
                kernels=change.kernels,
                merged=tuple(pair for pair in merged if pair is not None),
            )
        )

    def _import(self, added: Iterable[ir.Node]) -> None:
        """Lets the model import the domains of new nodes."""
        for node in added:
            if node.domain not in ("", "ai.onnx"):
                self._imports.setdefault(node.domain, 1)

    def _replace(self, node: ir.Node, old: ir.Value, new: ir.Value | None, builder: Builder) -> tuple[str, str] | None:
        if new is None:
            return None
        if not can_stand_for(old, new):
            new = builder.op("Identity", new)
        name = old.name or ""
        fresh = new.producer() in builder.added
        keeps_name = fresh and not old.is_graph_output()
        self._worklist.add(use.node for use in old.uses())
        replace_value(old, new)
        self._view.replaced(old, new)
        if keeps_name:
            old.name, new.name = f"{name}/replaced", name
        return None if new.name == name else (name, new.name or "")

    def _remove(self, node: ir.Node, builder: Builder) -> list[ir.Node]:
        """Removes the anchor, what was built in vain, and all that only they needed; what has one user less is looked at again."""
        gone, freed = [node, *nested(node)], remove_node(node)
        built = [*builder.constants, *(output for new in builder.added for output in new.outputs)]
        dead = remove_dead([*freed, *built])
        gone.extend(dead.nodes)
        for value in (*freed, *dead.freed):
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                self._worklist.add([producer])
            uses = value.uses()
            if len(uses) == 1:  # conditions such as "only use" may hold now
                self._worklist.add(use.node for use in uses)
        return gone


class RuleError(PassError):
    """A rule failed; names the rewrite, so that the driver can drop it and go on.

    Attributes:
        key: the rewrite that failed.
    """

    def __init__(self, key: ledger.Key, error: Exception) -> None:
        super().__init__(f"{key}: {type(error).__name__}: {error}")
        self.key = key
