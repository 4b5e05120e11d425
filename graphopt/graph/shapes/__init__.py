"""Symbolic shapes: lengths as expressions in the lengths of the inputs, for every value of a model."""
