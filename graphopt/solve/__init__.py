"""Solvers: the closest member of a set (a grid, a sparsity pattern, a codebook) to a layer's weight in the metric of its inputs.

Pure functions of arrays: weights are ``[groups, out, in]``, Gram matrices of the inputs ``[groups, in, in]``. Nothing here knows a graph.
"""
