"""Where the library keeps what it makes on a machine: the simulator's library, tuned launch tables."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``MVK_CACHE_DIR``, else mobilevit_kernels under the user's cache folder."""
    if "MVK_CACHE_DIR" in os.environ:
        return Path(os.environ["MVK_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mobilevit_kernels"
