"""The equation of an Einsum of two operands, read as a product of matrices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contraction:
    """A sum of products of two operands, with one letter per axis.

    Attributes:
        first, second: the indices of the operands, in their order.
        result: those of the result.
        batch: in both operands and the result, in the order of the result.
        left, right: in the first, or the second, operand and the result, in the order of the result.
        summed: in both operands but not in the result.
    """

    first: str
    second: str
    result: str
    batch: str
    left: str
    right: str
    summed: str

    @property
    def swapped(self) -> Contraction:
        """The same with the operands in the other order."""
        return Contraction(self.second, self.first, self.result, self.batch, self.right, self.left, self.summed)

    @property
    def is_matrix_product(self) -> bool:
        """Whether Transpose and MatMul compute it: one index is summed, and either operand has one of its own, or no batch needs order."""
        return len(self.summed) == 1 and len(self.left) == 1 and len(self.right) == 1

    @property
    def moves(self) -> int:
        """How many transposes a MatMul of the operands in this order takes; one of the last two axes of an operand counts none."""
        matrix = self.batch + self.summed + self.right
        return (
            (self.first not in (self.batch + self.left + self.summed, self.batch + self.summed + self.left))
            + (self.second not in (matrix, self.batch + self.right + self.summed))
            + (self.result != self.batch + self.left + self.right)
        )


def contraction_of(equation: str) -> Contraction | None:
    """Reads an equation such as ``bhid,bhjd->bhij``.

    Returns:
        None where it is of another kind: without a result or with an ellipsis, an index twice in an operand, or one that is in
        one operand alone and summed.
    """
    operands, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = operands.partition(",")
    letters = (first, second, result)
    if not arrow or not comma or any(len(set(part)) < len(part) or not (part.isalpha() or not part) for part in letters):
        return None
    if set(first) ^ set(second) != (set(first) ^ set(second)) & set(result) or set(result) - set(first) - set(second):
        return None
    return Contraction(
        first,
        second,
        result,
        batch="".join(index for index in result if index in first and index in second),
        left="".join(index for index in result if index not in second),
        right="".join(index for index in result if index not in first),
        summed="".join(index for index in first if index in second and index not in result),
    )
