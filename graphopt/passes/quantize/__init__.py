"""Quantization: fewer bits a weight, and where the target has kernels for it a value."""
