"""Recipes: a target, a list of passes, limits; as YAML, as Python, or from a preset.

Every run writes a *resolved* recipe in which each measured choice is fixed: replaying it times nothing and gives the
same bytes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from graphopt.errors import RecipeError
from graphopt.ledger import Key
from graphopt.passes.base import AnyPass, GuidedPass
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.rules import rule_names
from graphopt.spec import PassSpec, build_pass, explain

Verification = Literal["full", "outputs", "structure"]
"""How much is proved: structure only; outputs too; or also size, kernels and speed of the written file."""


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
        metric: the user's own, as ``module:function``; see :class:`graphopt.choosing.metric.Metric`. Where a recipe names one and no
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
        built = [build_pass(spec, self.target, allow_imports=allow_imports) for spec in self.passes]
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


def _checked(fields: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, Recipe)) from error
