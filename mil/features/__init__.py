"""Feature files that other tools made: read, verified, brought into a run, and written for them.

`find` recognises what lies in a folder, `Bag` is one slide of it. Nothing here imports torch until
a ``.pt`` file is met.
"""

from __future__ import annotations

from mil.features.bag import Bag
from mil.features.folder import FeatureFiles, find

__all__ = ["Bag", "FeatureFiles", "find"]
