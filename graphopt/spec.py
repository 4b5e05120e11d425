"""Specifications of passes: how a recipe writes a pass, and how it becomes one."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import onnx_ir as ir
import pydantic

from graphopt.errors import RecipeError
from graphopt.passes import find
from graphopt.passes.base import AnyPass, GuidedPass, Pass, options_of
from graphopt.passes.foreign import ForeignPass


class PassSpec(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A pass by name with its options; in YAML ``simplify``, ``prune(macs=0.7)`` or ``prune: {macs: 0.7}``.

    Attributes:
        name: a registered pass, or ``module:Class`` of an ``onnx_ir`` pass.
        options: values for the fields of the pass.
    """

    name: str
    options: dict[str, Any] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, str):
            return _parse_spec(data)
        if isinstance(data, dict) and len(data) == 1 and "name" not in data:
            [(name, options)] = data.items()
            return {"name": name, "options": options or {}}
        return data

    @pydantic.model_serializer
    def _shortest(self) -> str | dict[str, Any]:
        return {self.name: self.options} if self.options else self.name


def _parse_spec(text: str) -> dict[str, Any]:
    """Reads ``name`` or ``name(option=value, …)``; values are Python literals or plain words."""
    match = re.fullmatch(r"\s*([\w.:-]+)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r} is not a pass; write name or name(option=value, …)")
    name, arguments = match.groups()
    try:
        call = ast.parse(f"f({arguments or ''})", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r}: the options are not of the form option=value, …") from error
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{text!r}: options are written option=value")
    return {"name": name, "options": {str(k.arg): _literal(k.value) for k in call.keywords}}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False}.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is no value; write a number, a word, a text in quotes, or a list of these") from error


def build_pass(spec: PassSpec, target: str, *, allow_imports: bool) -> AnyPass | ForeignPass:
    """Makes a pass.

    Args:
        spec: what the recipe says.
        target: of the recipe, for passes that have it as a field.
        allow_imports: whether ``module:Class`` may be imported.

    Raises:
        RecipeError: the pass or an option is unknown or not valid.
    """
    if ":" in spec.name:
        return _import(spec, allow_imports=allow_imports)
    kind = find(spec.name)
    unknown = sorted(set(spec.options) - set(options_of(kind)))
    if unknown:
        close = difflib.get_close_matches(unknown[0], options_of(kind), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; its options are: {', '.join(options_of(kind)) or 'none'}"
        raise RecipeError(f"pass {spec.name} has no option {unknown[0]!r}{hint}")
    implied = {"target": target} if "target" in options_of(kind) else {}
    try:
        built: AnyPass = pydantic.TypeAdapter(kind).validate_python(implied | spec.options)
    except pydantic.ValidationError as error:
        raise RecipeError(f"pass {spec.name}: {explain(error, kind)}") from error
    return built


def _import(spec: PassSpec, *, allow_imports: bool) -> AnyPass | ForeignPass:
    if not allow_imports:
        raise RecipeError(f"pass {spec.name} would import code: allow it with --allow-imports")
    module_name, _, class_name = spec.name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does, so that a script beside the model is found
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
        built = kind(**spec.options)
    except Exception as error:  # whatever the foreign module raises is the user's to see, as one line
        raise RecipeError(f"pass {spec.name} cannot be made: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if isinstance(built, (Pass, GuidedPass)):
        return built
    if not isinstance(built, ir.passes.PassBase):
        raise RecipeError(f"pass {spec.name} is not an onnx_ir pass (a subclass of onnx_ir.passes.PassBase)")
    return ForeignPass(spec.name, built)


def explain(error: pydantic.ValidationError, kind: type) -> str:
    """One line for the first problem of a validation: the key, what is wrong, and what is allowed."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        known = ", ".join(_fields(kind, first["loc"][:-1]))
        return f"{path}: unknown key{f'; allowed here: {known}' if known else ''}"
    return f"{path}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"


def _fields(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The names of the fields at a place of a nested model; none where it is no model."""
    for part in location:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = None if field is None else next((one for one in (field.annotation, *get_args(field.annotation)) if _is_model(one)), None)
    return list(getattr(kind, "model_fields", {}))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
