"""What of the conditions belongs to which sample: never guessed, however a run takes its batch apart."""

from collections import namedtuple

import pytest
import torch
from problems import states

import scoreflow as sf
from scoreflow._score.conditions import joined, known, none_given, plain, rounds, rows

VP, B = sf.VPSDE(), 4
X = states(B + 1, 3) * torch.tensor([[1.0], [3.0], [0.2], [5.0], [2.0]])
C, Y = states(B + 1, 3, seed=1), torch.arange(B + 1)
WORDS = {"": 0.0, "red": 0.4, "a cat": -0.3, "two": 0.1}
TEXTS = ["red", "a cat", "two", "a cat", "red"]
Pair = namedtuple("Pair", ["far", "near"])

KINDS = {
    "shared": (lambda n: torch.tensor([0.1, 0.2, 0.3, 0.4]), lambda c, x: c.sum()),  # as long as the batch of 4
    "shared, marked": (lambda n: sf.shared(torch.tensor([0.1, 0.2, 0.3, 0.4])), lambda c, x: c.sum()),
    "rows": (lambda n: C[:n], lambda c, x: c),
    "rows, marked": (lambda n: sf.each(C[:n]), lambda c, x: c),
    "tuple": (lambda n: (C[:n], 2.0, Y[:n]), lambda c, x: c[0] * c[1] + 0.1 * c[2][:, None]),
    "named tuple": (lambda n: Pair(C[:n], None), lambda c, x: c.far),
    "dict": (lambda n: {"both": [C[:n], Y[:n]], "of": "it"}, lambda c, x: c["both"][0] + 0.1 * c["both"][1][:, None]),
    "texts": (lambda n: TEXTS[:n], lambda c, x: torch.tensor([[WORDS[word]] for word in c])),
    "texts, marked": (lambda n: sf.each(TEXTS[:n]), lambda c, x: torch.tensor([[WORDS[word]] for word in c])),
    "a text": (lambda n: "a cat", lambda c, x: WORDS[c]),
    "an object": (lambda n: iter(()), lambda c, x: 0.3),
    "shared and rows": (lambda n: {"w": sf.shared(Y[:4] / 10), "c": sf.each(C[:n])}, lambda c, x: c["w"].sum() + c["c"]),
}  # fmt: skip
"""What is given for n samples, and what a network makes of it, for states of as many."""
RUNS = {
    "log_prob": lambda m, x, **c: sf.log_prob(m, x, stop=0.1, divergence="exact", rtol=1e-3, atol=1e-3, **c).value,
    "encode": lambda m, x, **c: sf.encode(m, x, stop=0.1, rtol=1e-3, atol=1e-3, **c),
    "adaptive": lambda m, x, **c: sf.solve(m, x, "dpm-adaptive", **c).x,
    "one by one": lambda m, x, **c: sf.solve(m, x, "torchdiffeq", method="bosh3", rtol=1e-2, control="sample", steps=2, **c).x,
    "parallel": lambda m, x, **c: sf.solve(m, x, "ddim", steps=4, parallel=sf.Picard(3, 0.0), **c).x,
    "ddim": lambda m, x, **c: sf.solve(m, x, "ddim", steps=3, **c).x,
}


class Net(torch.nn.Module):
    """ε̂ from the state, what is made of c, and y; keeps the batches that it was asked with."""

    def __init__(self, made):
        super().__init__()
        self.made, self.seen = made, []

    def forward(self, x, t, c, y=None):
        self.seen.append(len(x))
        return 0.5 * x + 0.2 * self.made(c, x) * (1 if y is None else 1 + 0.2 * y[:, None])


def guided(net):
    return sf.ClassifierFree(sf.ScoreModel(net, VP), 2.0, null={"y": 0.0}, interval=(0.0, 0.7))


@pytest.mark.parametrize("wrap", [lambda net: sf.ScoreModel(net, VP), guided], ids=["plain", "guided"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_in_batches_of_four_and_five(kind, run, wrap):
    """Among 4 a shared tensor of 4 numbers might have a row a sample; among 5 it cannot."""
    given, made = KINDS[kind]
    ys = (lambda n: {"y": Y[:n]}) if wrap is guided else (lambda n: {})
    of_4, of_5 = (RUNS[run](wrap(Net(made).eval()), X[:n], c=given(n), **ys(n))[:4] for n in (4, 5))
    torch.testing.assert_close(of_4, of_5, rtol=1e-9, atol=1e-9)


def test_what_is_known_is_taken_apart_and_what_is_not_is_not():
    """Marks, or a null that names them, let samples leave the batch, and branches share a call; they change no result."""
    found = {}
    for kind in ("rows", "rows, marked", "shared", "shared, marked"):
        given, made = KINDS[kind]
        net = Net(made).eval()
        model = sf.ScoreModel(net, VP)
        found[kind] = sf.solve(model, X[:4], "dpm-adaptive", c=given(4))
        assert (min(net.seen) < 4) is kind.endswith("marked") and max(net.seen) == 4
        net.seen.clear()
        sf.solve(guided(net), X[:4], "ddim", grid=[0.6, 0.3, 0.0], c=given(4), y=Y[:4])
        assert net.seen == ([8, 8] if kind.endswith("marked") else [4, 4, 4, 4])
        net.seen.clear()
        sf.solve(sf.ClassifierFree(model, 2.0, null={"c": 0.0}), X[:4], "ddim", steps=2, c=given(4))
        assert net.seen == ([4, 4, 4, 4] if "shared" in kind and "marked" in kind else [8, 8])
    for kind in ("rows", "shared"):
        assert found[kind].nfe_per_sample == found[f"{kind}, marked"].nfe_per_sample
        torch.testing.assert_close(found[kind].x, found[f"{kind}, marked"].x, rtol=1e-9, atol=1e-9)
    net.null = {"c": 0.0}  # the network's own word
    net.made = KINDS["rows"][1]
    net.seen.clear()
    sf.solve(model, X[:4], "dpm-adaptive", c=C[:4])
    assert min(net.seen) < 4


def test_conditions_go_with_the_data_of_a_variance():
    """By rows where they have them, at any depth; what is shared stays whole, however long it is."""
    data, c = states(12, 3), states(12, 3, seed=1)

    def net(x, t, c, w):
        return 0.5 * x + c["v"][0] * w.sum()

    w = torch.linspace(0, 0.1, 12, dtype=torch.float64)
    model, alone = sf.ScoreModel(net, VP), sf.ScoreModel(lambda x, t, c: net(x, t, {"v": (c,)}, w), VP)
    ours = sf.estimate_variance(model, data, 3, by="error", batch=5, c={"v": (c,)}, w=sf.shared(w))
    assert ours == sf.estimate_variance(alone, data, 3, by="error", batch=5, c=c)
    seen = sf.Subject(model, (3,), conditions={"c": {"v": (c,)}, "w": sf.shared(w)})
    assert seen.conditioned(12, 0)["w"].value is w and seen.identity()["conditions"] != sf.Subject(model, (3,)).identity()


# -- what stands for none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_a_null_with_a_row_a_sample_goes_with_its_samples(run):
    """Negative conditions, one a sample: each sample is what it is alone with its own."""
    null = states(4, 3, seed=5)
    model = sf.ScoreModel(Net(lambda c, x: c).eval(), VP)
    ours = RUNS[run](sf.ClassifierFree(model, 3.0, null={"c": null}), X[:4], c=C[:4])
    for i in range(4):
        one = sf.ClassifierFree(model, 3.0, null={"c": null[i]})
        alone = RUNS[run](one, X[i : i + 1], c=C[i : i + 1])
        torch.testing.assert_close(ours[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_nulls_of_every_kind():
    """Of another length, of text, of dicts, None: the other branch is the network with what stands for none."""
    tokens, words = states(4, 7, 3, seed=2), {"cat": 1.0, "": 0.0}

    def net(x, t, c):
        if c is None:
            return 0.1 * x
        if isinstance(c, Tokens):
            return 0.3 * x
        c = c["v"] if isinstance(c, dict) else c
        return x * (torch.tensor([[words[one]] for one in c]) if isinstance(c, list) else c.mean(1))

    Tokens = type("Tokens", (), {})
    full, few = states(4, 2, 3, seed=3), states(2, 3, seed=4)
    for c, null, none in (
        (tokens, few, few.expand(4, 2, 3)), (tokens, few[None], few.expand(4, 2, 3)), (tokens, full, full),
        (tokens, 0.5, torch.full_like(tokens, 0.5)), (tokens, few[0], few[0].expand(4, 7, 3)), (tokens, [1, 2, 3], None),
        ({"v": tokens, "mask": 1}, {"v": few}, {"v": few.expand(4, 2, 3), "mask": 1}), ({"v": tokens}, None, None),
        (["cat", "", "cat", ""], "", ["", "", "", ""]), (sf.each(["cat", "", "cat", ""]), "", ["", "", "", ""]),
        (tokens, Tokens(), Tokens()), (sf.shared(tokens[:1]), 0.0, torch.zeros(1, 7, 3)),
    ):  # fmt: skip
        none = torch.tensor([1.0, 2, 3]).to(tokens).expand_as(tokens) if isinstance(null, list) else none
        ours, other = net(X[:4], 0.5, plain(c)), net(X[:4], 0.5, none)
        found = sf.ClassifierFree(sf.ScoreModel(net, VP), 3.0, null={"c": null})(X[:4], 0.5, c=c)
        torch.testing.assert_close(found, other + 3 * (ours - other))
    with pytest.raises(ValueError, match=r"null\['c'\] has shape \(3, 2, 3\), and the condition \(4, 7, 3\): give one that br"):
        sf.ClassifierFree(sf.ScoreModel(net, VP), 3.0, null={"c": full[:3]})(X[:4], 0.5, c=tokens)


def test_texts_of_two_branches_are_one_batch():
    seen = []

    def net(x, t, text, size):
        seen.append((text, size["h"].tolist()))
        return x

    model = sf.ScoreModel(net, VP)
    sf.ClassifierFree(model, 2.0, null={"text": "", "size": {"h": 0}})(X[:2], 0.5, text=["a", "b"], size={"h": Y[1:3]})
    assert seen == [(["a", "b", "", ""], [1, 2, 0, 0])]


# -- the rule itself -----------------------------------------------------------------------------------------------------


def test_rows_and_joined():
    """Rows of what has them, at any depth; the rest is the same object. A batch joined to itself holds each twice."""
    own, object_ = {"c", "d"}, object()
    given = {"c": C[:4], "d": {"e": (Y[:4], TEXTS[:4]), "f": object_, "g": Y}, "n": 3, "s": sf.shared(Y[:4])}
    assert not known(given, 4, own)  # what the object holds
    assert known({"f": sf.shared(object_)}, 4) and not known({"f": sf.each(object_)}, 4)
    given["d"]["f"] = "a text"
    assert known(given, 4, own) and not known(given, 4, {"d"}) and known({"c": C}, 4) and known({"c": C[:4]}, 5)
    part = rows(given, torch.tensor([2, 0]), 4, own)
    assert torch.equal(part["c"], C[[2, 0]]) and part["d"]["e"][1] == ["two", "red"] and part["d"]["f"] == "a text"
    assert part["d"]["e"][0].tolist() == [2, 0] and isinstance(part["d"]["e"], tuple)
    assert part["d"]["g"] is Y and part["n"] == 3 and part["s"] == given["s"]
    two = joined(given, given, 4, own)
    assert two["c"].shape == (8, 3) and two["d"]["e"][1] == TEXTS[:4] * 2 and two["s"] == given["s"]
    assert joined({"c": C[:4]}, {"c": C[:4, :2]}, 4, own) is None and joined({"c": C[:4]}, {"c": TEXTS[:4]}, 4, own) is None
    assert joined({"c": C[:4]}, {"c": {"v": C[:4]}}, 4, own) is None and joined({"z": C[:4]}, {"z": C[:4]}, 4, own) is None
    bare = {"a": [given["c"]], "b": "text"}
    assert plain(given)["s"] is given["s"].value and plain(given)["d"] is given["d"] and plain(bare) is bare
    assert none_given("c", C[:4], None, 4) is None


def test_whole_batches_for_samples_that_come_again():
    """Every place is asked once, in the row of its sample; the answers come in the order of the question."""
    samples, asked = [3, 1, 3, 0, 3, 1, 2], []
    for places, numbers, whole in rounds(samples, 4):
        assert len(whole) == 4 and [whole[n] for n in numbers] == places and [samples[p] for p in places] == numbers
        asked += places
    assert sorted(asked) == list(range(7)) and asked != sorted(asked) and not list(rounds([], 4))

    def net(x, t, c):
        return torch.cat([x * c, x + t.to(x)[:, None]], 1)

    model, x, t = sf.ScoreModel(net, VP), states(7, 3, seed=6), torch.linspace(0.2, 0.8, 7, dtype=torch.float64)
    output, word = model.evaluate_some(x, t, torch.tensor(samples), 4, {"c": C[:4]})
    torch.testing.assert_close(output, x * C[samples])
    torch.testing.assert_close(word, x + t[:, None], rtol=1e-6, atol=1e-6)


def test_marks_deep_inside_are_taken_off_and_nothing_else_is_rebuilt():
    inner = torch.ones(2)
    told = plain({"a": [sf.each(inner), 3], "b": (inner, None)})
    assert told["a"][0] is inner and told["a"][1] == 3 and told["b"][0] is inner
    bare = {"a": [inner], "b": {"c": inner}}
    assert plain(bare) is bare
