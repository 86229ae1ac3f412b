"""Samples written to a file, by its ending: the one place for `Solution.save` and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.files import check_file, whole_file
from scoreflow._extras import named
from scoreflow._show import picture
from scoreflow._show.picture import Range

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}
ARRAYS = (".npy", ".pt", ".safetensors")
SHOWN = 64
"""Images that `show` shows, if not told."""
SECONDS, HELD = 3.0, 1.5
"""An animation's length, and that of its last picture."""


def check_ending(name: str, file: str | os.PathLike[str], shape: Sequence[int] | None = None) -> Path:
    """The file, if samples can be written to it; None: of a shape that is not known yet.

    Raises:
        TypeError: no name of a file. ValueError: an ending that is not known, or of a picture where samples are none.
        FileNotFoundError, IsADirectoryError: as `check_file`.
    """
    path = check_file(name, file)
    if path.suffix.lower() not in (*PICTURES, *ARRAYS):
        raise ValueError(f"{name} must end in {', '.join((*PICTURES, *ARRAYS))}, got {str(path)!r}")
    if path.suffix.lower() in PICTURES and shape is not None and not picture.drawable(shape):
        raise ValueError(f"{name}={str(path)!r}: {_not_drawn(shape)}; write {', '.join(ARRAYS)}")
    return path


@named()
def draw(x: Tensor, states: Tensor | None, times: Sequence[float], trajectory: bool, range: Range, shown: int | None) -> Image:
    """The samples x (B, ...) as a sheet of images or a panel of points; their trajectory as a strip.

    Raises:
        As `Solution.show`.
    """
    low_high = _range(range)
    _check(x, shown)
    if check.flag("trajectory", trajectory):
        return picture.strip(host(_kept(states), shown, 1), times, low_high)
    return picture.still(host(x, shown), low_high)


@named()
def read(name: str, file: str | os.PathLike[str], shape: Sequence[int]) -> Tensor:
    """An image file as values from 0 (black) to 1, of the shape (1, H, W) or (3, H, W).

    Raises:
        FileNotFoundError: there is none. ValueError: it is no image, or of another size; `name` is the argument's.
    """
    from PIL import Image, UnidentifiedImageError

    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{name} is an image, and samples have the shape {tuple(shape)}, not (1, H, W) or (3, H, W)")
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if shape[0] == 1 else "RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{name} must be an image file, and {os.fspath(file)!r} is none") from None
    if (picture.height, picture.width) != tuple(shape[1:]):
        raise ValueError(
            f"{name} must be {shape[1]} pixels high and {shape[2]} wide, as the samples are; {os.fspath(file)!r} is "
            f"{picture.height} high and {picture.width} wide"
        )
    pixels = np.asarray(picture, dtype=np.float32).reshape(*shape[1:], shape[0]) / 255
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@named()
def write(
    file: str | os.PathLike[str],
    x: Tensor,
    states: Tensor | None = None,
    times: Sequence[float] = (),
    trajectory: bool = False,
    range: Range = (-1, 1),
    shown: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the samples x (B, ...), or their trajectory, by the file's ending.

    Raises:
        As `Solution.save`.
    """
    path = check_ending("file", file, x.shape[1:])
    ending = path.suffix.lower()
    low_high, kind = _range(range), PICTURES.get(ending, "")
    _check(x, shown) if kind else None
    wanted = _kept(states, path) if check.flag("trajectory", trajectory) or kind == "GIF" else x.detach()
    with whole_file(path) as part:
        if kind == "GIF":
            _animate(picture.frames(host(wanted, shown, 1), times, low_high), part)
        elif kind:
            draw(x, states, times, trajectory, range, shown).save(part, format=kind)
        elif ending == ".npy":
            with open(part, "wb") as opened:  # numpy would add an ending
                np.save(opened, host(wanted))
        elif ending == ".pt":
            torch.save(wanted.to("cpu").clone(), part)  # of a view torch would write all that it is a view of
        else:
            from safetensors.torch import save_file

            name = "states" if trajectory else "x"
            save_file({name: wanted.to("cpu").contiguous()}, part, metadata=dict(metadata or {}))
    return path


def _animate(frames: list[Image], part: Path) -> None:
    each = max(40, round(1000 * SECONDS / len(frames)))
    durations = [each] * (len(frames) - 1) + [round(1000 * HELD)]
    frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _kept(states: Tensor | None, file: Path | None = None) -> Tensor:
    if states is None:
        what = "trajectory=True" if file is None or file.suffix.lower() != ".gif" else f"{file.name!r}, an animation,"
        raise ValueError(f"{what} needs the states on the way, and this run kept none: solve(..., trajectory=True)")
    return states.detach()


def _check(x: Tensor, shown: int | None) -> None:
    """Raise ValueError unless the samples can be drawn."""
    if not picture.drawable(x.shape[1:]):
        raise ValueError(_not_drawn(x.shape[1:]))
    if not len(x):
        raise ValueError("a batch of 0 samples is no picture")
    if shown is not None:
        check.whole("shown", shown)


def _not_drawn(shape: Sequence[int]) -> str:
    return f"samples of shape {tuple(shape)} are no pictures: those that can be drawn are {picture.KINDS}"


def _range(range: Any) -> Range:
    """The values of black and white."""
    try:
        black, white = range
    except (TypeError, ValueError):
        raise TypeError(f"range must be two numbers, the values of black and of white, got {range!r}") from None
    ends = check.number("range", black), check.number("range", white)
    if ends[0] == ends[1]:
        raise ValueError(f"range must be two different numbers, the values of black and of white, got {range!r}")
    return ends


def host(x: Tensor, shown: int | None = None, batch: int = 0) -> np.ndarray:
    """For numpy; of images only the first `shown` of the dimension `batch`."""
    x = x.detach()
    if shown is not None and x.ndim - batch == 4:
        x = x.narrow(batch, 0, min(shown, x.shape[batch]))
    x = x.to("cpu")
    return (x if x.dtype.itemsize > 2 or x.dtype == torch.float16 else x.float()).numpy()  # numpy has no bfloat16
