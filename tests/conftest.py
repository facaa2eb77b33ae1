"""What all tests share: modest use of the machine, and small pieces of the training data."""
from __future__ import annotations

import os

import pytest
import torch

# Small tensors gain nothing from more threads, and other test processes may share the machine: those of "pytest -n" do.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture
def one_thread():
    """One CPU thread: sums are then added in the same order every time, which bit-for-bit comparisons need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
