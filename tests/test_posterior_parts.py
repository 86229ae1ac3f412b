"""What posterior methods are made of: solvers, and the ready maps of images."""

import math

import pytest
import torch

from scoreflow.posterior import Observation, blur, crop, downsample, grayscale
from scoreflow.posterior.solve import conjugate_gradients, gmres


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_conjugate_gradients():
    """Row by row the solution of the dense system, with the residual that it has; a row more changes no other."""
    roots = numbers(5, 4, 4, seed=1)
    systems, b = roots @ roots.mT + 0.1 * torch.eye(4, dtype=torch.float64), numbers(5, 4, seed=2)
    b[3] = 0.0
    for iterations in (1, 2, 4, 20):
        u, off = conjugate_gradients(lambda u: (systems @ u[..., None])[..., 0], b, iterations, 1e-12)
        rest = (b - (systems @ u[..., None])[..., 0]).norm(dim=1) / b.norm(dim=1)
        torch.testing.assert_close(off, rest.nan_to_num(), rtol=1e-4, atol=1e-10)
        few, _ = conjugate_gradients(lambda u: (systems[:2] @ u[..., None])[..., 0], b[:2], iterations, 1e-12)
        torch.testing.assert_close(few, u[:2])
    torch.testing.assert_close(u, torch.linalg.solve(systems, b), rtol=1e-8, atol=1e-10)


def test_gmres():
    """Of systems neither symmetric nor positive the least residual over the Krylov space, by least squares, row by row."""
    systems, b = numbers(6, 5, 5, seed=1), numbers(6, 5, seed=2)
    systems[4] = torch.eye(5) * 3.0
    b[3] = 0.0
    before = torch.ones(6, dtype=torch.float64)
    for iterations in range(7):
        u, off = gmres(lambda u: (systems @ u[..., None])[..., 0], b, iterations, 1e-11)
        for i in (0, 1, 2, 4, 5):
            krylov = torch.stack([torch.linalg.matrix_power(systems[i], k) @ b[i] for k in range(max(iterations, 1))], 1)
            krylov = torch.linalg.qr(krylov[:, : 1 if i == 4 else 5])[0] * (iterations > 0)
            best = krylov @ torch.linalg.lstsq(systems[i] @ krylov, b[i][:, None], driver="gelsd").solution
            torch.testing.assert_close(u[i], best[:, 0], rtol=1e-7, atol=1e-9)
        rest = (b - (systems @ u[..., None])[..., 0]).norm(dim=1) / b.norm(dim=1)
        torch.testing.assert_close(off, rest.nan_to_num(), rtol=1e-6, atol=1e-9)
        assert (off <= before + 1e-12).all() and not u[3].any()
        before = off
        few, _ = gmres(lambda u: (systems[:2] @ u[..., None])[..., 0], b[:2], iterations, 1e-11)
        torch.testing.assert_close(few, u[:2])
    torch.testing.assert_close(u, torch.linalg.solve(systems, b), rtol=1e-8, atol=1e-10)


def test_gmres_stands_still():
    """A row whose residual is within rtol takes no further step, whatever the others need; and its residual is what it has."""
    systems, b = torch.eye(5, dtype=torch.float64) + 0.2 * numbers(6, 5, 5, seed=1), numbers(6, 5, seed=2)
    u, off = gmres(lambda u: (systems @ u[..., None])[..., 0], b, 5, 0.2)
    rest = (b - (systems @ u[..., None])[..., 0]).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(off, rest)
    assert (off <= 0.2).all() and (off > 1e-3).all()
    for i in range(6):
        alone, own = gmres(lambda u, i=i: (systems[i] @ u[..., None])[..., 0], b[i : i + 1], 5, 0.2)
        torch.testing.assert_close(alone[0], u[i])
        torch.testing.assert_close(own[0], off[i])


MAPS = {
    "matrix": (numbers(3, 48, seed=1), (3, 4, 4)),
    "mask": (torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) > 0.5, (3, 4, 4)),
    "downsample": (downsample(2), (3, 4, 4)),
    "blur": (blur(0.8), (3, 4, 4)),
    "crop": (crop(1, 0, 2, 3), (3, 4, 4)),
    "grayscale": (grayscale(), (3, 4, 4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name):
    """⟨A x, u⟩ = ⟨x, Aᵀ u⟩; the matrix is the map; states of 32 and 16 bits too."""
    A, event = MAPS[name]
    x = numbers(2, *event, seed=3)
    seen = Observation(A, torch.zeros(1))
    out = seen.measure(x)
    u = numbers(*out.shape, seed=4)
    torch.testing.assert_close((out * u).sum(1), (x * seen.adjoint(u, x)).flatten(1).sum(1))
    torch.testing.assert_close(x.flatten(1) @ seen.matrix(event).mT, out)
    for dtype in (torch.float32, torch.bfloat16):
        assert seen.measure(x.to(dtype)).dtype == seen.adjoint(u.to(dtype), x.to(dtype)).dtype == dtype


def test_ready_maps():
    x = torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4)
    assert downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert crop(1, 2, 1, 2)(x).flatten().tolist() == [6.0, 7.0]
    assert torch.allclose(grayscale()(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2), atol=1e-3)
    one = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    one[0, 0, 4, 4] = 1.0
    spread = blur(1.0)(one)
    assert float(spread[0, 0].sum()) == pytest.approx(1.0) and not bool(spread[0, 1].any())
    assert float(spread[0, 0, 4, 5] / spread[0, 0, 4, 4]) == pytest.approx(math.exp(-0.5))
