"""What is linked reads as what would have been copied, in the same order."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from hopaas_p2p.core import inherited as links
from hopaas_p2p.core.records import FROM_START


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "FEW", 3)
    monkeypatch.setattr(links, "FEW_STEPS", 3)
    monkeypatch.setattr(links, "_DEEPEST", 5)


@pytest.mark.parametrize("seed", range(60))
def test_series_read_as_dictionaries(seed: int) -> None:
    draw = random.Random(seed)
    values: Mapping[int, float] = {}
    model: dict[int, float] = {}
    for at in range(200):
        match draw.randrange(6):
            case 0 | 1 | 2:
                new = {draw.randrange(-5, 40): float(at) for _ in range(draw.randrange(8))}
                values = links.grown(values, new)
                model.update(new)
            case 3:
                first, last = draw.choice(((FROM_START, draw.randrange(-6, 41)), (draw.randrange(-6, 20), 30), (0, -1)))
                values = links.cut(values, first, last)
                model = {step: value for step, value in model.items() if first <= step <= last}
            case 4:
                first, last = draw.choice(((FROM_START, draw.randrange(-6, 41)), (draw.randrange(-6, 20), 30)))
                before, copy = links.linked(values), list(values.items())
                values = links.inherited(before, first, last)
                model = {step: value for step, value in model.items() if first <= step <= last}
                assert list(before.items()) == copy
            case 5:
                values = links.inherited(links.linked(values), FROM_START, links.LAST_STEP)
        assert list(values.items()) == list(model.items())
        assert values == model
        assert links.last_step(values) == max(model, default=None)
        assert bool(values) == bool(model)
        for step in range(-7, 43, 5):
            later = [one for one in model if one >= step]
            assert links.value_from(values, step) == (model[min(later)] if later else None)
            assert (step in values, values.get(step)) == (step in model, model.get(step))


@pytest.mark.parametrize("seed", range(60))
def test_attributes_read_as_dictionaries(seed: int) -> None:
    draw = random.Random(seed)
    values: Mapping[str, str] = {}
    model: dict[str, str] = {}
    for at in range(200):
        new = {f"k{draw.randrange(30)}": str(at) for _ in range(draw.randrange(6))}
        match draw.randrange(4):
            case 0 | 1:
                before = values
                values = links.merged(values, new)
                assert values is not before
                model = {**model, **new}
            case 2:
                without = {f"k{draw.randrange(30)}" for _ in range(draw.randrange(4))}
                parent, copy = values, list(values.items())
                child = links.branch(values, without)
                model = {key: text for key, text in model.items() if key not in without}
                child["own"] = model["own"] = str(at)
                child.update(new)
                model.update(new)
                gone = f"k{draw.randrange(30)}"
                assert child.pop(gone, None) == model.pop(gone, None)
                assert list(parent.items()) == copy
                values = child
            case 3:
                values = links.branch(values)
        assert list(values.items()) == list(model.items())
        assert (len(values), bool(values)) == (len(model), bool(model))
        assert links.if_few(values) == (model if len(model) <= 3 else None)
        assert all((f"k{one}" in values) == (f"k{one}" in model) for one in range(30))
