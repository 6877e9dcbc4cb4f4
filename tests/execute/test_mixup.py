"""Blended samples in fine-tuning: who labels them, and that every step blends anew."""

from dataclasses import replace

import pytest
import torch
from execute_toys import digits, same
from torch.nn.functional import cross_entropy

from autocompress.data.training import Blend, TrainingBatches, trained_on
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import finetune
from autocompress.execute.tuning import FineTuning

QUICK = FineTuning(epochs=0.5, batch_size=64, augmentation="none")


def compressed_digits():
    toy = digits("channel")
    return toy, toy.compressed(0.0, 2, 8)[0]


def blended_loss(monkeypatch, **settings):
    """The loss of one step with all samples blended by a half with the next one's, and what the original then says."""
    toy, compressed = compressed_digits()
    count = 1437 - len(toy.data.search_indices)
    half = Blend(torch.arange(count).roll(-1), torch.full((count,), 0.5))
    monkeypatch.setattr(Blend, "drawn", lambda *_: half)
    whole = FineTuning(epochs=1, batch_size=count, augmentation="none", mixup=0.5, learning_rate=1e-12, **settings)
    told = []
    finetune(compressed, toy.folded, toy.data, whole, progress=told.append)
    ((inputs, labels),) = TrainingBatches(toy.data, trained_on(toy.data), count, "none").steps(0, 1)
    inputs = (inputs + inputs.roll(-1, 0)) / 2
    with torch.no_grad():
        return told[-1].loss, toy.folded(inputs), compressed.rounded()(inputs), labels


def test_blended_samples_are_labelled_by_both(monkeypatch):
    loss, _, got, labels = blended_loss(monkeypatch, objective=Objective(soft=0, hard=1))
    both = (cross_entropy(got, labels) + cross_entropy(got, labels.roll(-1))) / 2
    assert loss == pytest.approx(float(both), rel=1e-3)


def test_the_original_answers_for_blended_samples(monkeypatch):
    loss, wanted, got, _ = blended_loss(monkeypatch)
    assert loss == pytest.approx(float(Objective().predictions_loss(got, wanted, None)), rel=1e-3)
    objective = Objective(soft=0, hard=1)
    loss, wanted, got, _ = blended_loss(monkeypatch, objective=objective, labels="teacher")
    assert loss == pytest.approx(float(cross_entropy(got, wanted.argmax(1))), rel=1e-3)


def test_a_blend_is_drawn_anew_for_every_step(monkeypatch):
    toy, compressed = compressed_digits()
    settings = replace(QUICK, epochs=0.2, mixup=0.5)
    one, two, plain = (
        finetune(compressed, toy.folded, toy.data, s) for s in (settings, settings, replace(QUICK, epochs=0.2))
    )
    assert one.best_step > 0
    assert same(one.compressed, two.compressed)
    assert not same(one.compressed, plain.compressed)
    drawn, draw = [], Blend.drawn
    monkeypatch.setattr(Blend, "drawn", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    finetune(compressed, toy.folded, toy.data, settings)
    partners = {tuple(each.partners.tolist()) for each in drawn}
    assert len(partners) == len(drawn) == one.steps > 1
