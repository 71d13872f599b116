import pytest
import torch


@pytest.fixture
def double_precision():
    """Float64 as torch's default dtype, so that oracles are compared without rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
