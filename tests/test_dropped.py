"""Conditions dropped in training, of every kind: each sample's loss is what it is alone."""

import pytest
import torch
from problems import states
from torch import nn
from torch.utils.data import Dataset

import scoreflow as sf
from scoreflow._score import conditions
from scoreflow.training import Objective, Recipe, train

N, VP, CHAIN = 6, sf.VPSDE(), sf.VPSDE.from_betas(sf.DDPMChain.linear(20).beta)
X, TOKENS = states(N, 2), states(N, 5, 2, seed=1)
WORDS = {"": 0.0, "red": 0.4, "a cat": -0.3}
TEXTS = ["red", "a cat", "red", "a cat", "a cat", "red"]


class Net(nn.Module):
    """ε̂ from the state and what is made of c, a weight for every kind of it; twice the channels if asked."""

    def __init__(self, channels=2):
        super().__init__()
        self.layer, self.channels, self.seen = nn.Linear(2, 2, dtype=torch.float64), channels, []

    def forward(self, x, t, c, size=None):
        self.seen.append(len(x))
        out = self.layer(x) * (1 + self.made(c, x))
        out = out if size is None else out * size[:, None]
        return out if self.channels == 2 else torch.cat([out, out * 0.1], 1)

    def made(self, c, x):
        if c is None or isinstance(c, str):
            return WORDS.get(c, 2.0)
        if isinstance(c, dict):
            return self.made(c["v"], x)
        if isinstance(c, list | tuple):
            return torch.tensor([[WORDS[word]] for word in c])
        return c.mean(1) if c.ndim == 3 else c[:, None] / 10


CASES = {
    "texts": (TEXTS, "", "one"),
    "a dict": ({"v": TOKENS, "of": "it"}, {"v": 0.0}, "one"),
    "numbers": (torch.arange(N), 10, "one"),
    "one null sequence": (TOKENS, states(5, 2, seed=2), "one"),
    "None": (TOKENS, None, "two"),
    "another length": (TOKENS, states(3, 2, seed=2), "two"),
    "a text for a dict": ({"v": TOKENS}, "", "two"),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_loss_of_a_batch_is_that_of_its_samples(kind):
    """Dropped or not; what cannot stand among the rows of a batch has a call of its own."""
    c, null, calls = CASES[kind]
    for channels, more in ((2, {}), (4, {"size": torch.linspace(0.5, 2.0, N, dtype=torch.float64)})):
        net = Net(channels)
        model, vlb = sf.ScoreModel(net, CHAIN), 0.1 * (channels == 4)
        objective, plain = Objective(drop=0.5, null={"c": null}, vlb=vlb), Objective(vlb=vlb)
        draw = objective.draw(model, X, seed=3)
        assert 0 < int(draw.dropped.sum()) < N
        found = objective(model, X, draw, c=c, **more)
        assert sorted(net.seen) == ([N] if calls == "one" else sorted([int(draw.dropped.sum()), int((~draw.dropped).sum())]))
        for i in range(N):
            one = draw._replace(**{name: getattr(draw, name)[i : i + 1] for name in draw._fields})
            given = conditions.rows({"c": c, **more}, torch.tensor([i]), N, ("c", "size"))
            if draw.dropped[i]:
                given["c"] = conditions.none_given("c", given["c"], null, 1)
            torch.testing.assert_close(found.each[i : i + 1], plain(model, X[i : i + 1], one, **given).each)
        found.mean.backward()
        assert bool(net.layer.weight.grad.any())


class Items(Dataset):
    def __init__(self, c):
        self.c = c

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return torch.full((2,), i / 16), {"c": self.c}


@pytest.mark.parametrize("c", ["red", {"v": torch.zeros(2), "w": "a cat"}, (torch.zeros(2), torch.ones(1))], ids=str)
@pytest.mark.parametrize("null", ["", None])
def test_items_of_text_dicts_and_tuples_train(c, null):
    """As the loader collates them, with a part dropped or all."""
    seen = []

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.null = nn.Linear(2, 2), {"c": null}

        def forward(self, x, t, c):
            seen.append(c)
            return self.layer(x)

    for drop in (0.3, 1.0):
        train(sf.ScoreModel(Told(), VP), Items(c), Objective(drop=drop), Recipe(steps=3, batch=8))
    assert seen[-1] == ([""] * 8 if c == "red" and null == "" else null)
