"""What a folder holds and how it was made: a JSON file, written by who comes first and compared by all who add to it."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scoreflow._core import NUMERICS
from scoreflow._core.files import whole_file
from scoreflow._run.solve import Prepared
from scoreflow._score.fingerprint import identity
from scoreflow._score.model import ScoreModel

FREE = ("made",)
"""What of a manifest the things in its folder do not depend on."""


@dataclass(frozen=True)
class Manifest:
    """A kind of manifest.

    Attributes:
        file: its name. what: what lies beside it. maker: who writes it. format: of this version.
    """

    file: str
    what: str
    maker: str
    format: int = 1

    def read(self, folder: Path) -> dict[str, Any]:
        """What the things in a folder are.

        Raises:
            FileNotFoundError: no such folder. NotADirectoryError: it is a file. ValueError: it holds no manifest, or one of
                another version.
        """
        if not folder.exists():
            raise FileNotFoundError(f"no {self.what} at {folder}: no such folder")
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file: give the folder that {self.maker} wrote")
        try:
            found = json.loads((folder / self.file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no {self.what}: there is no {self.file}, as {self.maker} writes") from None
        except ValueError as error:
            raise ValueError(f"{folder / self.file} is no manifest of {self.what}: {error}") from error
        if not isinstance(found, dict) or found.get("format") != self.format:
            version = found.get("format") if isinstance(found, dict) else None
            raise ValueError(f"{folder / self.file} has format {version!r}, and this version reads {self.format}")
        return found

    def whole(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """As it stands in a file."""
        return json.loads(json.dumps({"format": self.format, **own}))

    def agree(self, folder: Path, own: Mapping[str, Any], begin: bool = False) -> bool:
        """Whether the folder has a manifest, which then says what `own` does; to `begin` is to write it where there is none.

        Raises:
            ValueError: it says something else; names what. NotADirectoryError: the folder is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"out={str(folder)!r} is a file: give a folder")
        own = self.whole(own)
        if not (file := folder / self.file).exists():
            if not begin:
                return False
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(file, first=True) as part:
                part.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
        known = self.read(folder)
        differ = [name for name in dict.fromkeys((*own, *known)) if name not in FREE and known.get(name) != own.get(name)]
        if "sampler" in differ or "times" in differ:  # they say it in fewer words
            differ = [name for name in differ if name != "plan"]
        if differ:
            said = (f"{name}={_short(own.get(name))}, there {_short(known.get(name))}" for name in differ)
            raise ValueError(f"{folder} holds other {self.what}: {'; '.join(said)}. Give another out, or the same values")
        return True


def of_run(model: ScoreModel, prepared: Prepared, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """What a manifest says of the run that makes the states of its folder."""
    return {
        "numerics": NUMERICS, "model": repr(model), "weights": identity(model), "path": repr(model.path),
        "sampler": repr(prepared.sampler), "times": list(prepared.times),
        "plan": None if prepared.plan is None else json.loads(prepared.plan.to_json()),
        "shape": list(shape), "dtype": str(dtype).removeprefix("torch."),
        "made": {"scoreflow": version("scoreflow"), "torch": str(torch.__version__)},
    }  # fmt: skip


def stamp(manifest: Mapping[str, Any]) -> str:
    """A hash of what the things of a manifest depend on."""
    own = {name: value for name, value in manifest.items() if name not in FREE}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:24]


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder=" …")
