"""The errors that graphopt raises: one tree, each message one line that names the place and the remedy."""

from __future__ import annotations


class GraphoptError(Exception):
    """Base of all errors that are somebody's input's fault or the environment's, not a bug.

    The command line prints the message as one line and exits with status 1.
    """


class ModelFileError(GraphoptError, ValueError):
    """A file cannot be read as an ONNX model, or cannot be written."""


class ContainerError(GraphoptError, ValueError):
    """A packed model is no container, is damaged, or holds what no packed model holds."""


class InvalidModelError(GraphoptError, ValueError):
    """A model's graph breaks ONNX's rules: a cycle, a duplicate name, a missing value."""


class UnsupportedModelError(GraphoptError, NotImplementedError):
    """A model is valid but uses something that the target or this version cannot take."""


class SamplesError(GraphoptError, ValueError):
    """Samples do not fit the model: wrong names, dtypes, ranks, or nothing to read."""


class StatisticsError(GraphoptError, ValueError):
    """Statistics cannot be taken, read or merged, or were taken from another state of the model."""


class RecipeError(GraphoptError, ValueError):
    """A recipe, a preset or an option of a pass is not valid."""


class RuntimeUnavailableError(GraphoptError, ImportError):
    """No ONNX Runtime (or torch) is installed where one is needed."""


class SessionError(GraphoptError, RuntimeError):
    """The runtime refused to load a model or failed while it ran."""


class PassError(GraphoptError, RuntimeError):
    """A pass failed or broke its contract; ``__cause__`` holds the original error."""


class VerificationError(GraphoptError, RuntimeError):
    """A result differs from the original beyond what is allowed."""


class LimitError(GraphoptError, RuntimeError):
    """A budget or limit that was asked for cannot be met."""


class LedgerError(GraphoptError, ValueError):
    """There is no ledger to read, or it does not know what was asked."""
