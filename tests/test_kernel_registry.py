"""What the installed runtime says about its own kernels; holds at the oldest runtime that is supported and at the newest."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt.runtime.registry import available_providers, has_kernel, packed_bits, registered_kernels, registered_operators

CPU = "CPUExecutionProvider"


def test_kernels_name_their_versions_and_types() -> None:
    """A kernel serves a range of versions, and says which element types each type variable may have."""
    definitions = registered_kernels()[CPU, "", "MatMul"]
    assert all(1 <= each.first <= each.last for each in definitions)
    assert any("tensor(float)" in each.dtypes["T"] for each in definitions)


def test_operators_of_all_domains_are_listed() -> None:
    """Standard operators stand in the empty domain, the runtime's own in theirs; some have no kernel."""
    assert {("", "Conv"), ("com.microsoft", "Gelu"), ("com.microsoft", "GroupNorm")} <= registered_operators()
    assert (CPU, "com.microsoft", "GroupNorm") not in registered_kernels()


@pytest.mark.parametrize(
    ("operator", "dtype", "opset", "expected"),
    [
        ("Conv", ir.DataType.FLOAT, 18, True),
        ("Conv", ir.DataType.INT32, 18, False),
        ("com.microsoft::Gelu", ir.DataType.FLOAT, 18, True),
        ("LayerNormalization", ir.DataType.FLOAT, 17, True),
        ("NoSuchOperator", ir.DataType.FLOAT, 18, False),
    ],
)
def test_whether_a_kernel_is_there(operator: str, dtype: ir.DataType, opset: int, expected: bool) -> None:
    """Domain, element type and version of the opset count."""
    assert has_kernel(CPU, operator, dtype, opset) is expected


def test_other_providers_are_asked_by_name() -> None:
    """The CPU is always there; a provider that the wheel was built without has no kernels."""
    assert CPU in available_providers()
    assert not has_kernel("NoSuchProvider", "Conv", ir.DataType.FLOAT, 18)


def test_packed_weights_of_four_bits_always_have_a_kernel() -> None:
    """Newer runtimes have kernels for 2 and 8 bits too."""
    assert 4 in packed_bits() <= {2, 4, 8}
