"""Banks of oracles: several mixtures run as one batch, so that thousands of configurations can be tried in minutes."""

import math

import numpy as np
import torch

import scoreflow as sf


class Bank(torch.nn.Module):
    """Mixtures of diagonal Gaussians of several dimensions, padded to one: states (G·n, D), n for each of G mixtures.

    Padding has mean 0 and variance 1 in every component, so it says nothing of the others; errors leave it out. With a
    `scale`, ε̂ is guided to the first component: ε̂ + scale (ε̂_first − ε̂).
    """

    def __init__(self, mixtures, path, n=48, scale=None):
        super().__init__()
        self.names, self.n, self.path, self.scale = list(mixtures), n, path, scale
        k = max(len(w) for w, _, _ in mixtures.values())
        d = max(m.shape[1] for _, m, _ in mixtures.values())
        self.log_w = torch.full((len(mixtures), 1, k), -math.inf, dtype=torch.float64)
        self.mean = torch.zeros(len(mixtures), 1, k, d, dtype=torch.float64)
        self.var = torch.ones(len(mixtures), 1, k, d, dtype=torch.float64)
        self.real = torch.zeros(len(mixtures), 1, d, dtype=torch.bool)
        for g, (w, m, v) in enumerate(mixtures.values()):
            self.log_w[g, 0, : len(w)] = torch.as_tensor(w).log()
            self.mean[g, 0, : len(w), : m.shape[1]] = torch.as_tensor(m)
            self.var[g, 0, : len(w), : m.shape[1]] = torch.as_tensor(v)
            self.real[g, 0, : m.shape[1]] = True

    def forward(self, x, t):
        """ε̂, exact."""
        a, s = self.path.alpha(float(t[0])), self.path.sigma(float(t[0]))
        y = x.reshape(len(self.names), self.n, 1, -1)
        precision = 1 / (a**2 * self.var + s**2)
        off = y - a * self.mean
        scaled = off * precision
        logits = self.log_w - 0.5 * ((off * scaled).sum(-1) - precision.log().sum(-1))
        # ε̂ = σ Σ_k r_k (x − α m_k)/(α² v_k + σ²): no digits are lost where σ is small.
        whole = (logits.softmax(-1)[..., None] * scaled).sum(2)
        if self.scale is not None:
            whole = whole + self.scale * (scaled[:, :, 0] - whole)
        return whole.reshape(x.shape) * s

    def model(self):
        model = sf.ScoreModel(self, self.path, prediction="eps", time="unit")
        model.oracle = self
        return model

    def start(self, seed=0):
        shape = len(self.names) * self.n, self.mean.shape[-1]
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x * self.path.prior_std(1.0)

    def errors(self, x, reference):
        """(median, RMS) over the samples of each mixture, (G, 2): a sample's error is RMS over its own dimensions."""
        off = (x - reference).reshape(len(self.names), self.n, -1).square() * self.real
        each = torch.nan_to_num(off.sum(-1) / self.real.sum(-1), nan=math.inf)
        return torch.stack([each.median(1).values, each.mean(1)], 1).sqrt().numpy()


def reference(bank, x, steps=1500):
    """The probability-flow ODE from t = 1 to data; the two finest runs agree far below any error reported."""
    fine = [
        sf.solve(bank.model(), x, "exponential-ab", order=4, grid=sf.grid(bank.path, n, "logsnr", t_min=1e-8)).x
        for n in (steps, 2 * steps)
    ]
    return fine[1], float(np.max(bank.errors(*fine)[:, 0]))


def random_mixture(d, k, std, seed, decay=0.0, off=0.0):
    """Random means, diagonal variances std² j^−decay, scaled to a variance of 1 a dimension on average, moved by `off`."""
    g = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1.0) ** -decay
    mean = g.normal(size=(k, d)) * np.sqrt(spectrum)
    var = np.broadcast_to(std**2 * spectrum, (k, d)) * g.uniform(0.5, 1.5, size=(k, 1))
    w = g.uniform(0.5, 1.5, size=k)
    w, mean, var = scaled(w / w.sum(), mean, var)
    return w, mean + off, var


def scaled(w, mean, var):
    """The mixture moved and scaled to mean 0 and variance 1 a dimension on average."""
    mean = mean - w @ mean
    size = math.sqrt(float((w @ (mean**2 + var)).mean()))
    return w, mean / size, var / size**2


def ring(k, std):
    angle = 2 * np.pi * np.arange(k) / k
    return scaled(np.full(k, 1 / k), np.stack([np.cos(angle), np.sin(angle)], 1), np.full((k, 2), std**2))


def digits(classes, d=32):
    """A component for each class of scikit-learn's digits, on their first d principal axes; 8×8 images, real spectra."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images / 8 - 1
    axes = np.linalg.svd(images - images.mean(0), full_matrices=False)[2][:d]
    parts = [(images[labels == c] - images.mean(0)) @ axes.T for c in classes]
    w = np.array([len(p) for p in parts], dtype=float)
    return scaled(w / w.sum(), np.stack([p.mean(0) for p in parts]), np.stack([p.var(0) + 1e-3 for p in parts]))


TUNING = {
    "ring of 8, d=2": ring(8, 0.1),
    "5 modes about 1, d=3": random_mixture(3, 5, 0.3, 0, off=1.0),
    "10 tight modes, d=16": random_mixture(16, 10, 0.15, 1),
    "6 modes, spectrum j^-1, d=32": random_mixture(32, 6, 0.5, 2, decay=1.0),
    "digits 0-4, d=32": digits(range(5)),
    "7 tight modes about -0.5, d=96": random_mixture(96, 7, 0.1, 4, off=-0.5),
}
"""What the table of `auto` is made on."""

HELD_OUT = {
    "ring of 6 about 2, d=2": (ring(6, 0.2)[0], ring(6, 0.2)[1] + 2.0, ring(6, 0.2)[2]),
    "9 modes, d=4": random_mixture(4, 9, 0.2, 11),
    "8 modes about 0.5, d=24": random_mixture(24, 8, 0.25, 12, off=0.5),
    "4 modes, spectrum j^-1.5, d=32": random_mixture(32, 4, 0.7, 13, decay=1.5),
    "digits 5-9, d=32": digits(range(5, 10)),
    "12 tight modes, d=128": random_mixture(128, 12, 0.1, 14),
}
"""What its regret is measured on."""

PATHS = {
    "linear": sf.VPSDE.from_betas(sf.DDPMChain.linear().beta),
    "cosine": sf.VPSDE.from_betas(sf.DDPMChain.cosine().beta),
}
