"""A device without float64, played on the host: tensors that say they are elsewhere, and refuse what such a device refuses."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("lazy")  # not "meta", whose tensors have no numbers: those of a device can be looked at
LARGE = {torch.float64, torch.complex128}


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device; its numbers are on the host."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=DEVICE, strides=held.stride(), requires_grad=held.requires_grad
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy):  # they go by no operation
            return getattr(args[0].detach().held, func.__name__)()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # a list becomes a tensor by none
            place = tree_map_only(list, torch.tensor, args[1], is_leaf=lambda x: isinstance(x, list))
            args = (args[0], place, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Pretended().__torch_dispatch__(func, types, args, kwargs)


def tensors(values):
    """All that an operation is given: tensors, and lists of them."""
    found = []
    for x in values:
        found += [x] if isinstance(x, torch.Tensor) else tensors(x) if isinstance(x, tuple | list | type({}.values())) else []
    return found


def each(change, value):
    """The value, or the entries of a list, changed."""
    return type(value)(each(change, x) for x in value) if type(value) in (tuple, list) else change(value)


def held(x):
    """Its numbers."""
    return x.held if isinstance(x, Elsewhere) else x


class Made(TorchFunctionMode):
    """`torch.tensor` puts numbers on a device by no operation: here by one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


class Pretended(TorchDispatchMode):
    """Within it the device can be named."""

    def __enter__(self):
        self.made = Made().__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = tensors((args, kwargs.values()))
        there = [x for x in given if isinstance(x, Elsewhere)]
        if not there and kwargs.get("device") != DEVICE:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        onto = kwargs.get("device")
        if there and name not in ("copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_"):
            for x in given:
                if not isinstance(x, Elsewhere) and x.ndim:
                    raise RuntimeError(f"{name}: tensors on {DEVICE} and on {x.device}")
        goes = bool(there) if onto is None else torch.device(onto).type == DEVICE.type
        if onto is not None:
            kwargs["device"] = "cpu"
        if name == "detach" or name == "alias":
            return Elsewhere(args[0].held.detach()) if there else func(*args, **kwargs)
        out = func(*each(held, args), **{key: each(held, value) for key, value in kwargs.items()})
        if name.endswith("_") and not name.startswith("_"):
            return args[0]

        def back(x):
            if not isinstance(x, torch.Tensor) or not goes:
                return x
            if x.dtype in LARGE:
                raise TypeError(f"{name}: {DEVICE} has no {x.dtype}")
            return Elsewhere(x)

        return each(back, out)
