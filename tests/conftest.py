"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two workers share two cores; a run that a test starts may set another number."""
    torch.set_num_threads(1)
