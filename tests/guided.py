"""What the tests of guidance share: a mixture whose components are the classes, exact models of it, and every wrapper."""

import torch
from problems import mixture, states

import scoreflow as sf

K, D = 5, 3
MIX = mixture(d=D)
VP = sf.VPSDE()
AXES = torch.eye(D).double().expand(K, D, D) if MIX._eigenvectors is None else MIX._eigenvectors
COV = (AXES * MIX._var[:, None]) @ AXES.mT
PARTS = [sf.GaussianMixture(torch.ones(1), MIX.means[k : k + 1], COV[k : k + 1]) for k in range(K)]
Y = torch.tensor([0, 3, 1, 3])
X = states(4, D)


class Both(torch.nn.Module):
    """The exact ε of one component for its class, that of the mixture for the class K, and for None."""

    def __init__(self, path=VP):
        super().__init__()
        self.path, self.null, self._seen = path, {"y": K}, []

    @property
    def seen(self):
        """The batches it was asked with."""
        return self._seen

    def forward(self, x, t, y=None):
        self._seen.append(len(x))
        a, s = self.path.alpha(t), self.path.sigma(t)
        return ((x - a[:, None] * self.x_0(x, t, y)) / s[:, None]).to(x.dtype)

    def x_0(self, x, t, y):
        a, s = self.path.alpha(t), self.path.sigma(t)
        whole = MIX.denoise(x, a, s)
        parts = torch.stack([*(part.denoise(x, a, s) for part in PARTS), whole], 1)
        return whole if y is None else parts[torch.arange(len(x)), y]


class Velocity(Both):
    """The exact velocity `(x − x̂_0)/t` of rectified flow, from t = 1 on."""

    def __init__(self):
        super().__init__(sf.Flow())

    def forward(self, x, t, y=None):
        return (x - self.x_0(x, t, y)) / t[:, None]


def posterior(x, t):
    """log p(component | x_t), up to a constant."""
    return MIX._joint(x, VP.alpha(t)[:, None], VP.sigma(t)[:, None])[0]


def net_model(prediction="eps", path=VP):
    net = Both(path)
    if prediction == "eps":
        return sf.ScoreModel(net, path)
    eps = sf.ScoreModel(net, path)

    def said(x, t, y=None):
        return eps(x, t, prediction, y=y)

    said.null = net.null
    return sf.ScoreModel(said, path, prediction)


MODEL = net_model()
WRAPPERS = {
    "cfg": lambda m: sf.ClassifierFree(m, 2.5),
    "cfg interval": lambda m: sf.ClassifierFree(m, 2.5, interval=(0.3, 0.6)),
    "cfg rescale": lambda m: sf.ClassifierFree(m, 2.5, rescale=0.7),
    "cfg schedule": lambda m: sf.ClassifierFree(m, lambda t: 1 + 2 * t),
    "apg": lambda m: sf.APG(m, 2.5, eta=0.2, norm=2.0, momentum=-0.5),
    "cfg-zero*": lambda m: sf.CFGZeroStar(m, 2.5),
    "tcfg": lambda m: sf.TCFG(m, 2.5),
    "autoguidance": lambda m: sf.Autoguidance(m, MIX.model(VP), 1.7),
    "classifier": lambda m: sf.ClassifierGuidance(MIX.model(VP), posterior, 2.0),
    "static": lambda m: sf.Thresholding(m, 0.8),
    "dynamic": lambda m: sf.Thresholding(m, 0.8, percentile=0.6),
    "cfg under thresholding": lambda m: sf.Thresholding(sf.ClassifierFree(m, 3.0), 1.0, percentile=0.9),
}
