import numpy as np
import torch

from autocompress.evaluation.predictions import Predictions


def test_shift_by_hand():
    """Two classes: the original says (1/2, 1/2), the plan (3/4, 1/4)."""
    predictions = Predictions(torch.zeros(1, 2))
    shift = predictions.shift(torch.tensor([[np.log(3.0), 0.0]], dtype=torch.float32))
    np.testing.assert_allclose(predictions.probabilities, [[0.5, 0.5]])
    np.testing.assert_allclose(shift, [[np.log(1.5), np.log(0.5)]], rtol=1e-3)
    assert shift.dtype == np.float16


def test_many_classes_are_pooled_by_the_originals_order():
    """20 classes of the original: the nine most likely stay, the other eleven are one."""
    logits = torch.arange(20.0).flip(0)[None]  # class 0 is the most likely
    predictions = Predictions(logits)
    whole = torch.softmax(logits.double(), 1)[0]
    np.testing.assert_allclose(predictions.probabilities[0], [*whole[:9], whole[9:].sum()])
    moved = logits.clone()
    moved[0, 15] += 5.0  # a class of the pool
    after = torch.softmax(moved.double(), 1)[0]
    pooled = torch.tensor([*after[:9], after[9:].sum()]).log() - torch.from_numpy(predictions.probabilities[0]).log()
    np.testing.assert_allclose(predictions.shift(moved)[0], pooled, atol=1e-4)


def test_pooling_never_raises_a_divergence():
    generator = torch.Generator().manual_seed(0)
    original, other = torch.randn(2, 50, 30, generator=generator, dtype=torch.float64) * 2
    predictions = Predictions(original)
    pooled = -(predictions.probabilities * predictions.shift(other)).sum(1)
    log_p, log_q = original.log_softmax(1), other.log_softmax(1)
    whole = (log_p.exp() * (log_p - log_q)).sum(1).numpy()
    assert (pooled <= whole + 1e-3).all()
    assert pooled.mean() > 0.5 * whole.mean()
