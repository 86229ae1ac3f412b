"""Samples as pictures: a sheet of images, points of the plane, a trajectory as a strip or as frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = "images, (1, H, W) or (3, H, W), and points of the plane, (2,)"
"""The shapes of samples that can be drawn."""
BLUE = "#0072B2"
GAP = 1
"""White pixels between two images, before they are enlarged."""
COLUMNS = 9
"""Times that a strip shows, at most."""
FRAMES = 60
"""Times that an animation shows, at most."""

Range = tuple[float, float]


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be drawn."""
    return tuple(shape) == (2,) or (len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0)


def still(x: np.ndarray, range: Range = (-1, 1), half: float | None = None, title: str = "") -> Image:
    """Samples (B, ...) at one time: images in a sheet that is about square, points in one panel."""
    if x.ndim == 2:
        return points(x, half or most(x), inches=3.2, title=title)
    return sheet(x, range, min(16, math.ceil(math.sqrt(len(x)))), size=64)


def strip(states: np.ndarray, times: Sequence[float], range: Range = (-1, 1)) -> Image:
    """States (N + 1, B, ...) at up to 9 of the times, side by side; of images a row is a sample."""
    from PIL import Image as pillow

    at = spread(len(states), COLUMNS)
    if states.ndim > 3:
        chosen = states[at].swapaxes(0, 1)  # (B, columns, C, H, W)
        return sheet(chosen.reshape(-1, *states.shape[2:]), range, len(at), size=64)
    half = square(states)
    shown = panels(states[at], half, inches=2.0, titles=[f"t = {times[k]:.3g}" for k in at])
    page = pillow.new("RGB", (sum(panel.width for panel in shown), shown[0].height), "white")
    for k, panel in enumerate(shown):
        page.paste(panel, (k * panel.width, 0))
    return page


def frames(states: np.ndarray, times: Sequence[float], range: Range = (-1, 1)) -> list[Image]:
    """States (N + 1, B, ...) as stills, at up to 60 of the times."""
    at = spread(len(states), FRAMES)
    if states.ndim > 3:
        return [still(states[k], range) for k in at]
    return panels(states[at], square(states), inches=3.2, titles=[f"t = {times[k]:.3f}" for k in at])


def spread(n: int, most: int) -> list[int]:
    """Of n places the first, the last, and others evenly between: at most so many."""
    return sorted({round(k) for k in np.linspace(0, n - 1, min(n, most))})


def sheet(x: np.ndarray, range: Range = (-1, 1), columns: int = 16, size: int = 24) -> Image:
    """Images (B, C, H, W) in rows, as 8 bits: `255 (x − a)/(b − a)` for the range (a, b), cut at 0 and 255.

    What is no number is grey. Images narrower than `size` are enlarged by a whole factor, to about that many pixels.
    """
    from PIL import Image as pillow

    n, channels, high, wide = x.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    black, white = range
    with np.errstate(invalid="ignore"):
        level = np.nan_to_num((x.astype(np.float64) - black) / (white - black), nan=0.5, posinf=1, neginf=0).clip(0, 1)
    tiles = np.ones((rows * columns, channels, high + GAP, wide + GAP))
    tiles[:n, :, :high, :wide] = level
    page = tiles.reshape(rows, columns, channels, high + GAP, wide + GAP).transpose(0, 3, 1, 4, 2)
    page = page.reshape(rows * (high + GAP), columns * (wide + GAP), channels)[:-GAP, :-GAP]
    scale = enlarged(wide, size)
    pixels = (255 * page).round().astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    return pillow.fromarray(pixels[..., 0] if channels == 1 else pixels)


def enlarged(wide: int, size: int = 24) -> int:
    """Pixels of the screen for one of an image that is so wide."""
    return max(1, round(size / wide))


def points(x: np.ndarray, half: float, inches: float = 1.2, title: str | None = None) -> Image:
    """Points (B, 2) in the square from −half to half; a panel with a title has ticks."""
    return panels([x], half, inches, None if title is None else [title])[0]


def panels(
    states: Sequence[np.ndarray] | np.ndarray, half: float, inches: float, titles: Sequence[str] | None = None
) -> list[Image]:
    """Panels of points that differ in nothing but these and their titles; laid out once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as pillow

    figure = Figure(figsize=(inches, inches), dpi=180 if titles is None else 110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    (dots,) = ax.plot([], [], ".", markersize=2 if titles is None else 3, color=BLUE, markeredgewidth=0)
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    if titles is None:
        ax.set(xticks=[], yticks=[])
    else:
        ax.tick_params(labelsize=7)
    found = []
    for k, x in enumerate(states):
        dots.set_data(*x.T)
        if titles is not None:
            ax.set_title(titles[k], fontsize=9)
        canvas.draw()  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")
        found.append(pillow.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))  # type: ignore[no-untyped-call]
    return found


def most(x: np.ndarray) -> float:
    """Half the side of a square that holds the points."""
    known = np.abs(x[np.isfinite(x)])
    return 1.25 * float(known.max(initial=0.0)) or 1.0


def square(states: np.ndarray) -> float:
    """The same for all times of a trajectory: three times that of the last. What lies farther out comes in later."""
    return min(most(states), 3 * most(states[-1]))
