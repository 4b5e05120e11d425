"""What is known of each node, for other viewers of models: in the nodes themselves, and as node data for Model Explorer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from graphopt import files
from graphopt.errors import LedgerError, ModelFileError
from graphopt.files.atomic import PendingFile
from graphopt.graph.edits import all_nodes
from graphopt.report.lineage import Lineage, titled
from graphopt.report.opening import Data, open_model, open_samples
from graphopt.report.profile import FEEDS, NodeProfile, profiles_of_nodes
from graphopt.report.sizing import shapes_at
from graphopt.runtime.session import SessionOptions

_PREFIX = "graphopt."
_GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e5532d"})


@dataclass(frozen=True)
class _Known:
    """A model, of which each node has a name, with its story and its times.

    Attributes:
        model: the model.
        lineage: what its ledger tells; None where it has none.
        executed: the executed node that computes each node of the file, by its name.
    """

    model: ir.Model
    lineage: Lineage | None
    executed: Mapping[str, NodeProfile]

    @classmethod
    def of(cls, file: Path, data: Data, options: SessionOptions | None) -> _Known:
        model = open_model(file)
        try:
            lineage = Lineage.of(file, model)
        except LedgerError:  # anyone's model: its times can be told all the same
            lineage = None
        feeds = list(islice(open_samples(file, model, data, options), FEEDS))
        nodes = profiles_of_nodes(file, model, feeds, shapes_at(model, feeds, options), options)
        return cls(model, lineage, {name: node for node in nodes for name in node.nodes})

    def facts(self, name: str) -> dict[str, str]:
        """What is known of a node, in words and numbers."""
        found: dict[str, str] = {}
        steps, origins = ([], []) if self.lineage is None else self.lineage.origins(name)
        if steps:
            found["made_by"] = ", ".join(titled(step.key) for step in steps)
            found["comes_from"] = ", ".join(origins)
        errors = [step.predicted_error for step in steps if step.predicted_error is not None]
        if errors:
            found["expected_error"] = f"{errors[-1]:.3g}"
        node = self.executed.get(name)
        if node is not None:
            found["kernel"] = node.kernel
            found["milliseconds"] = f"{node.seconds * 1e3:.4g}"
            if len(node.nodes) > 1:
                found["computed_with"] = ", ".join(each for each in node.nodes if each != name)
        return found


def write_annotated(
    target: str | Path,
    model: str | Path,
    data: Data = None,
    *,
    options: SessionOptions | None = None,
) -> Path:
    """Writes a copy of a model whose nodes tell in their metadata what made them, the error that was expected, and their time.

    Viewers such as Netron show it beside the attributes. Each node has a name there.

    Args:
        target: where to write.
        model: any model; one that graphopt wrote has more to tell.
        data: samples to time it on; None for synthetic ones.
        options: how it runs.

    Returns:
        ``target``.

    Raises:
        ModelFileError: a file cannot be read or written, or both are the same.
        SamplesError: the samples do not fit.
        SessionError: the model does not load or run.
    """
    file, path = files.model_file(Path(model)), Path(target)
    if path.exists() and path.samefile(file):
        raise ModelFileError(f"{target}: the model itself; choose another name for the copy")
    known = _Known.of(file, data, options)
    for node in all_nodes(known.model):
        node.metadata_props.update({f"{_PREFIX}{key}": text for key, text in known.facts(node.name or "").items() if text})
    files.save(known.model, path)
    return path


def write_node_data(
    target: str | Path,
    model: str | Path,
    data: Data = None,
    *,
    options: SessionOptions | None = None,
) -> Path:
    """Writes the milliseconds of each node in the form of Model Explorer's node data, which colours the graph with them.

    What a kernel takes that computes several nodes is shared out evenly, so that sums over groups of nodes are right. Nodes go by
    their names; in files with unnamed nodes these are the names of the annotated copy.

    Args:
        target: where to write.
        model: any model.
        data: samples to time it on; None for synthetic ones.
        options: how it runs.

    Returns:
        ``target``.

    Raises:
        ModelFileError: the model cannot be read.
        SamplesError: the samples do not fit.
        SessionError: the model does not load or run.
    """
    path = Path(target)
    known = _Known.of(files.model_file(Path(model)), data, options)
    results = {name: {"value": round(node.seconds * 1e3 / len(node.nodes), 6)} for name, node in known.executed.items()}
    content = {known.model.graph.name or "<main>": {"name": "milliseconds", "results": results, "gradient": _GRADIENT}}
    with PendingFile(path.parent, path.name) as pending:
        pending.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        pending.commit(path)
    return path
