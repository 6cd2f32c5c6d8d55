"""Where the library keeps what it makes on a machine: the simulator's library, tables of what was measured."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

__all__ = ["cache_folder", "is_there", "make_folder", "slug", "table_path", "write_text"]


def cache_folder() -> Path:
    """``MVK_CACHE_DIR``, else mobilevit_kernels under the user's cache folder."""
    if "MVK_CACHE_DIR" in os.environ:
        return Path(os.environ["MVK_CACHE_DIR"])
    # Path.home() raises for a user without a home folder, whose forwards look for tables here all the same.
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "~/.cache"))) / "mobilevit_kernels"


def make_folder(path: Path) -> Path:
    """``path``, made where it is not there yet.

    Raises:
        RuntimeError: it cannot be written to; the message says how to choose another cache folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason: str | None = error.strerror
    else:
        reason = None if os.access(path, os.W_OK) else "no permission to write"
    if reason is not None:
        raise RuntimeError(f"MVK_CACHE_DIR: expected a folder that can be written to, {path} cannot ({reason})")
    return path


def slug(name: str) -> str:
    """A device's name as a file's: ``NVIDIA H200`` → ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_path(kind: str, gpu: str) -> Path:
    """Where the table of a GPU model is in the cache folder: ``<kind>/<model>.json``."""
    return cache_folder() / kind / f"{slug(gpu)}.json"


def is_there(path: Path) -> bool:
    """Whether there is such a file, as far as this user may see: Path.exists() raises in a folder of another user."""
    return os.path.exists(path)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in one step: a reader, or a killed run, sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own mode is private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
