"""Files that stand whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path, *, first: bool = False, sync: bool = True) -> Iterator[Path]:
    """The file to write to instead; it takes this one's place when all went well, and is gone when not.

    Args:
        first: a file that is there by then stays as it is.
        sync: wait until it is on the disk, so that it is whole after a loss of power too.
    """
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.part")  # processes of other machines may share a pid
    try:
        part.touch()
        rights = part.stat().st_mode  # of any new file here; some releases of safetensors keep theirs from other users
        yield part
        part.chmod(rights)
        if sync:
            with open(part, "rb") as written:
                os.fsync(written.fileno())
        if not (first and _linked(part, file)):
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _linked(part: Path, file: Path) -> bool:
    """Whether the file is there now, by this link or before; False where the file system has no links."""
    try:
        os.link(part, file)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


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
