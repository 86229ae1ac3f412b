"""The networks of reference runs: where they come from, and how they go in."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoreflow._core.check import one_of, placed
from scoreflow._score.fingerprint import networks
from scoreflow._score.model import ScoreModel
from scoreflow.interop import from_diffusers, from_edm, from_velocity
from scoreflow.reference.manifest import Reference
from scoreflow.studies.features import Features, Inception, get_features
from scoreflow.studies.named import imported, load

Options = Mapping[str, Any]


def there(reference: Reference, folder: str | Path) -> dict[str, Path]:
    """The files of a reference that are in the folder, or that the hub gives."""
    places = {what: file.place(Path(folder)) for what, file in reference.files.items()}
    return {what: place for what, place in places.items() if place is not None}


def find(reference: Reference, folder: str | Path, but: Collection[str] = ()) -> dict[str, Path]:
    """`there`, with all that it needs, `but` for these.

    Raises:
        FileNotFoundError: some are nowhere; says which to put where.
    """
    places = there(reference, folder)
    if missing := [str(file) for what, file in reference.files.items() if what not in (*places, *but)]:
        raise FileNotFoundError(
            f"the reference {reference.name!r} needs files that are not in {str(folder)!r}. Put there: {'; '.join(missing)}"
        )
    return places


def hashes(reference: Reference, places: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of each file.

    Raises:
        ValueError: one is not what is stated.
    """
    return {what: reference.files[what].checked(place) for what, place in places.items()}


def read(
    reference: Reference, places: Mapping[str, Path], given: str | None = None, unpickle: bool = False, device: Any = None
) -> ScoreModel:
    """The score model of a reference.

    Args:
        places: of its files. given: `file.py:function`, your own code that gives the network, for the file.
        unpickle: a file that is a pickle may be read, which runs whatever code is in it.

    Raises:
        ValueError: a pickle, without leave; nothing at `given`. ModuleNotFoundError: what the network's code needs.
    """
    kind, options = reference.network["kind"], {k: v for k, v in reference.network.items() if k != "kind"}
    one_of("kind", kind, KINDS)
    opened, goes_in = KINDS[kind]
    if given is not None:
        net = _own(given)
    else:
        net = opened(places.get("network"), options, unpickle)
    model = net if isinstance(net, ScoreModel) else goes_in(net, options)
    for one in networks(model, set()):
        if isinstance(one, nn.Module):
            one.to(placed(device)).eval().requires_grad_(False)
    return model


def judge(reference: Reference, places: Mapping[str, Path]) -> tuple[str, Features]:
    """What samples are compared to, a name or a file of statistics, and the features where they are."""
    data = str(places["statistics"]) if "statistics" in places else reference.data
    return data, Inception(places["features"]) if "features" in places else get_features(reference.features)


def _own(given: str) -> Any:
    """What a function of the user's gives."""
    module, _, name = given.rpartition(":")
    if not module:
        raise ValueError(f"network must be file.py:function or package.module:function, got {given!r}")
    return imported(module, name, "network")()


def _zoo(place: Path | None, options: Options, unpickle: bool) -> ScoreModel:
    return load(f"zoo:{options['name']}", compare=False).model


def _diffusers(place: Path | None, options: Options, unpickle: bool) -> Any:
    try:
        library = import_module("diffusers")
    except ImportError as error:
        raise ModuleNotFoundError(f"this network needs diffusers: {error}", name="diffusers") from error
    return library.UNet2DModel.from_pretrained(str(place))


def _edm(place: Path | None, options: Options, unpickle: bool) -> Any:
    """The network in a pickle of EDM's, whose classes lie in it as source code."""
    assert place is not None
    if not unpickle:
        raise ValueError(
            f"{place} is a pickle, and reading it runs the code in it: allow that with --unpickle (unpickle=True), or read it "
            "by your own code, which is given as --network file.py:function"
        )
    try:
        with open(place, "rb") as opened:
            return pickle.load(opened)["ema"]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the pickle {place} needs {error.name}: put a clone of https://github.com/NVlabs/edm on PYTHONPATH",
            name=error.name,
        ) from error


def _torchcfm(place: Path | None, options: Options, unpickle: bool) -> Any:
    try:
        from torchcfm.models.unet.unet import UNetModelWrapper
    except ImportError as error:
        raise ModuleNotFoundError(f"this network needs torchcfm: {error}", name="torchcfm") from error
    net = UNetModelWrapper(**options["unet"])
    assert place is not None
    held = torch.load(place, map_location="cpu", weights_only=True)["ema_model"]
    net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in held.items()})
    return net


KINDS: dict[str, tuple[Callable[[Path | None, Options, bool], Any], Callable[[Any, Options], ScoreModel]]] = {
    "zoo": (_zoo, lambda net, options: net),
    "diffusers": (_diffusers, lambda net, options: from_diffusers(net, options["scheduler"])),
    "edm": (_edm, lambda net, options: from_edm(net)),
    "torchcfm": (_torchcfm, lambda net, options: from_velocity(net, data_at=1)),
}
"""By kind, how a network is read as its own library has it, and how it goes in."""
