"""Taylor importance: the second derivative of the divergence by a channel's gate."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompile.techniques import channels, fisher, importance
from edgecompile.techniques.torch_graph import from_onnx
from tests.techniques.test_torch_graph import _model, _samples

torch = pytest.importorskip("torch")


def test_a_score_is_half_the_second_derivative_of_the_divergence() -> None:
    model = _model("resnet20")
    found = channels.analyze(model)
    samples = _samples(model, 6)
    scores = fisher.scores(found, samples)
    group = max(found.groups, key=lambda g: g.size)
    best = int(np.argmax(scores[group.name]))
    graph = from_onnx(model)
    batch = {name: torch.from_numpy(np.concatenate([s[name] for s in samples])) for name in samples[0]}
    places = {name: place for name, place in fisher._places(found).items() if group.name in place.entries}
    eps = 0.05
    gate = torch.ones(len(samples), group.size)
    gate[:, best] -= eps
    gates = {
        name: fisher._gate(place, {group.name: gate})
        for name, place in places.items()
        if set(place.entries) == {group.name}
    }
    assert len(gates) == len(places)
    with torch.no_grad():
        (before,), (after,) = graph(batch).values(), graph(batch, gates=gates).values()
    p, q = before.double().log_softmax(1), after.double().log_softmax(1)
    divergence = float((p.exp() * (p - q)).sum(1).mean())
    assert divergence == pytest.approx(scores[group.name][best] * eps**2, rel=0.05)


def test_scores_order_channels_and_are_the_same_for_the_same_seed() -> None:
    model = _model("resnet20")
    found, samples = channels.analyze(model), _samples(model, 4)
    first, second = (importance.orders(found, samples, method="taylor", seed=1) for _ in range(2))
    assert first == second
    for group in found.groups:
        assert sorted(first[group.name].positions) == list(range(group.size))
        assert list(first[group.name].error) == sorted(first[group.name].error)
    assert any(order.positions != tuple(range(len(order.positions))) for order in first.values())


def test_outputs_that_are_no_classes_have_scores_too() -> None:
    model = _model("unet")
    found = channels.analyze(model)
    scores = fisher.scores(found, _samples(model, 2))
    assert all((values >= 0).all() and values.max() > 0 for values in scores.values())
