"""Files that stand whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """The file to write to instead; it takes this one's place when all went well, and is gone when not."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.touch()
        rights = part.stat().st_mode  # of any new file here; some releases of safetensors keep theirs from other users
        yield part
        part.chmod(rights)
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def check_file(name: str, file: str | os.PathLike[str]) -> Path:
    """The file's path. Raises TypeError unless it is the name of one, FileNotFoundError where its folder is not there,
    IsADirectoryError where it is a folder.
    """
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"{name} must be the name of a file, got {file!r}")
    path = Path(file)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}={str(path)!r} must lie in a folder that is there; {path.parent} is none")
    if path.is_dir():
        raise IsADirectoryError(f"{name}={str(path)!r} is a folder: give the name of a file in it")
    return path
