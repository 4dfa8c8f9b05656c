"""What all tests share."""

from __future__ import annotations

import torch

# Two workers share two cores, and tensors as small as these gain nothing from a second thread:
# without this the contract tests took five times as long. Runs set their own number.
torch.set_num_threads(1)
