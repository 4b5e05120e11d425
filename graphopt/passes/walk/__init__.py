"""Walks: samples go through a model layer by layer, beside the original's."""
