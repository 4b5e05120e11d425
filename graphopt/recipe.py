"""Recipes: a target, a list of passes, limits; as YAML, as Python, or from a preset.

Every run writes a *resolved* recipe in which each measured choice is fixed: replaying it times nothing and gives the
same bytes.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import onnx_ir as ir
import pydantic
import yaml

from graphopt.errors import RecipeError
from graphopt.ledger import Key
from graphopt.passes import find
from graphopt.passes.base import AnyPass, GuidedPass, Pass, options_of
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.rules import rule_names

Verification = Literal["full", "outputs", "structure"]
"""How much is proved: structure only; outputs too; or also size, kernels and speed of the written file."""


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


class SessionSettings(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How ONNX Runtime sessions are made for verification and timing.

    Attributes:
        threads: intra-op threads; 0 leaves the choice to the runtime.
        config: session configuration entries.
    """

    threads: Annotated[int, pydantic.Field(ge=0)] = 0
    config: dict[str, str] = {}


class Resolution(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a run found out, so that a replay need not measure again.

    Attributes:
        dropped: rewrites that were taken back, as [pass, rule, anchor]; an empty field matches anything.
        made_with: versions of graphopt and of the libraries whose kernels and passes were used.
        machine: processor and operating system that the measurements were made on.
    """

    dropped: list[tuple[str, str, str]] = []
    made_with: dict[str, str] = {}
    machine: str = ""

    @property
    def denied(self) -> frozenset[Key]:
        """The dropped rewrites as ledger keys."""
        return frozenset(Key(*entry) for entry in self.dropped)


class Recipe(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What to do with a model.

    Attributes:
        version: of this format.
        target: what the result is made for.
        passes: in order; neighbouring exact passes form one stage and run to a common fixed point.
        verify: how much is proved.
        tolerance: of exact stages, relative to the largest magnitude of each output.
        min_sqnr: dB between the signal of each output and the noise that approximations may bring into it, on each sample.
        metric: the user's own, as ``module:function``; see :class:`graphopt.metric.Metric`. Where a recipe names one and no
            ``min_sqnr``, the metric alone counts.
        max_drop: how much smaller than the original's its number may become.
        insist: fail where the limits leave nothing of any approximation.
        include: layers that approximations may touch: types of operators, globs on the names of nodes or weights; all where empty.
        exclude: layers that they may not touch.
        isa: what integer kernels run on: ``native``, a processor like this one; ``avx2``, any x86, whose 16-bit sums saturate: layers
            at risk get weights of 7 bits.
        time_limit: seconds that one timed comparison may take.
        skip: passes or rules that must not run.
        shapes: sizes of symbolic dimensions for synthetic samples.
        session: how sessions are made.
        resolved: present in a recipe that a run wrote.
    """

    version: Literal[1] = 1
    target: Literal["cpu", "portable", "cuda"] = "cpu"
    passes: list[PassSpec]
    verify: Verification = "full"
    tolerance: Annotated[float, pydantic.Field(gt=0, lt=1)] = 1e-4
    min_sqnr: Annotated[float, pydantic.Field(ge=0, le=200)] = 20.0
    metric: str | None = None
    max_drop: Annotated[float, pydantic.Field(ge=0)] | None = None
    insist: bool = False
    include: list[str] = []
    exclude: list[str] = []
    isa: Literal["native", "avx2"] = "native"
    time_limit: Annotated[float, pydantic.Field(gt=0)] = 20.0
    skip: list[str] = []
    shapes: dict[str, Annotated[int, pydantic.Field(ge=0)]] = {}
    session: SessionSettings = SessionSettings()
    resolved: Resolution | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _metric_alone(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("metric") is not None and "min_sqnr" not in data:
            return {**data, "min_sqnr": 0.0}
        return data

    @pydantic.model_validator(mode="after")
    def _metric_with_drop(self) -> Recipe:
        if (self.metric is None) != (self.max_drop is None):
            raise ValueError("metric and max_drop go together: what is measured, and how much smaller it may become")
        return self

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> Recipe:
        """Reads YAML.

        Raises:
            RecipeError: it is not YAML, or a key or value is not allowed; the message names the key and what is allowed.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise RecipeError(f"{source}: a recipe is a mapping with the key 'passes'; `graphopt recipe exact` prints one")
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise RecipeError(f"{source}: {explain(error, cls)}") from error

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a YAML file.

        Raises:
            RecipeError: the file cannot be read or is not a recipe.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read: {error}") from error
        return cls.parse(text, str(path))

    @classmethod
    def of(cls, *passes: str) -> Recipe:
        """A recipe of passes written ``name`` or ``name(option=value, …)``.

        Raises:
            RecipeError: one is not written that way.
        """
        return _checked({"passes": list(passes)})

    def changed(self, **fields: Any) -> Recipe:
        """The recipe with some fields replaced.

        Raises:
            RecipeError: a value is not allowed.
        """
        return _checked(self.model_dump() | fields)

    def to_yaml(self) -> str:
        """Writes YAML, defaults left out."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        if self.metric is not None:  # what a recipe with a metric does not say of it is something else than the default
            data["min_sqnr"] = self.min_sqnr
        return yaml.safe_dump({"version": self.version} | data, sort_keys=False, allow_unicode=True)

    def build(self, *, allow_imports: bool = False) -> list[AnyPass | ForeignPass]:
        """Makes the passes.

        Args:
            allow_imports: whether ``module:Class`` may be imported.

        Raises:
            RecipeError: a pass or an option is unknown or not valid, ``skip`` names nothing, or there is no approximation to limit.
        """
        built = [_build(spec, self.target, allow_imports=allow_imports) for spec in self.passes]
        self._check_skip(built)
        if not any(isinstance(each, GuidedPass) and each.role == "approximate" for each in built):
            for name in ("metric", "insist", "include", "exclude"):
                if getattr(self, name):
                    raise RecipeError(f"{name}: no pass of this recipe approximates anything, so there is nothing to limit")
        return built

    def _check_skip(self, built: Sequence[AnyPass | ForeignPass]) -> None:
        known = {each.name for each in built} | {line for each in built for line in rule_names(type(each))}
        for name in self.skip:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "; `graphopt passes` lists them"
                raise RecipeError(f"skip: no pass of this recipe, and no rule of one, is called {name!r}{hint}")


@dataclass(frozen=True)
class Preset:
    """A named way to make a recipe.

    Attributes:
        summary: one line for help texts.
        flags: the flags that it exposes on the command line, with their help.
        make: makes the recipe; its keyword arguments are the flags.
    """

    summary: str
    make: Callable[..., Recipe]
    flags: Mapping[str, str]

    def recipe(self, **flags: Any) -> Recipe:
        """Makes the recipe.

        Raises:
            RecipeError: a flag is not one of the preset's.
        """
        unknown = sorted(set(flags) - set(self.flags))
        if unknown:
            known = ", ".join(f"--{flag}" for flag in self.flags) or "none"
            raise RecipeError(f"unknown flag --{unknown[0]}: this preset's flags are: {known}")
        return self.make(**flags)


def _exact() -> Recipe:
    names = ("cleanup", "shapes", "simplify", "activations", "normalize", "affine", "attention", "algebra", "duplicates")
    return Recipe(passes=[PassSpec(name=name) for name in names])


def _int4(block: int = 128, min_sqnr: float = 10.0) -> Recipe:
    return _after_exact("embeddings", {"weights": {"block": block}}, "storage", min_sqnr=min_sqnr)


def _int8(min_sqnr: float = 10.0) -> Recipe:
    passes = ("retarget", "equalize", "smooth", "embeddings", "static", "dynamic", "recurrent", "storage", "bias")
    return _after_exact(*passes, min_sqnr=min_sqnr)


def _half(min_sqnr: float = 40.0) -> Recipe:
    return _after_exact("half", "half-storage", min_sqnr=min_sqnr)


def _after_exact(*passes: str | dict[str, Any], min_sqnr: float) -> Recipe:
    return _exact().changed(passes=[*_exact().passes, *passes], min_sqnr=min_sqnr)


_MIN_SQNR = "dB that every output must keep on every sample; layers that lose more stay in float"

PRESETS: dict[str, Preset] = {
    "exact": Preset("the same outputs with fewer, faster nodes; needs no data", _exact, {}),
    "half": Preset("16-bit floats: computed with on cuda, stored on cpu", _half, {"min_sqnr": f"{_MIN_SQNR} (default 40)"}),
    "int4": Preset(
        "weights of linear layers in 4 bits, tables and the rest in 8, approximate; better with data",
        _int4,
        {"block": "inputs that share a scale: 16, 32, 64, 128 or 256 (default 128)", "min_sqnr": f"{_MIN_SQNR} (default 10)"},
    ),
    "int8": Preset(
        "8-bit integers: convolutions and linear layers, recurrent ones, tables; approximate; wants --data for convolutions",
        _int8,
        {"min_sqnr": f"{_MIN_SQNR} (default 10)"},
    ),
}


def preset(name: str, **flags: Any) -> Recipe:
    """The recipe of a preset.

    Raises:
        RecipeError: no such preset or flag.
    """
    if name not in PRESETS:
        raise RecipeError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name].recipe(**flags)


def _checked(fields: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, Recipe)) from error


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


def _build(spec: PassSpec, target: str, *, allow_imports: bool) -> AnyPass | ForeignPass:
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
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
        built = kind(**spec.options)
    except Exception as error:  # whatever the foreign module raises is the user's to see, as one line
        raise RecipeError(f"pass {spec.name} cannot be made: {type(error).__name__}: {error}") from error
    if isinstance(built, (Pass, GuidedPass)):
        return built
    if not isinstance(built, ir.passes.PassBase):
        raise RecipeError(f"pass {spec.name} is not an onnx_ir pass (a subclass of onnx_ir.passes.PassBase)")
    return ForeignPass(spec.name, built)
