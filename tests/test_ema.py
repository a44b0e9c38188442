"""The moving average of the weights, compared with its formula."""

import pytest
import torch
from test_task import Means, batch, fit, new_task, weights_of

from stvid.errors import InputError
from stvid.training.ema import WeightEMA


def test_the_average_follows_its_formula_and_is_the_model_after_training():
    task = new_task(Means())
    seen, record = weights_of(task, "on_train_batch_end")
    average = WeightEMA(decay=0.3)
    fit(task, [batch(i) for i in range(5)], callbacks=[record, average])
    by_hand = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * weights
    assert average.decay_at(1) == pytest.approx(2 / 11)
    torch.testing.assert_close(task.model.head.weight, by_hand, rtol=0, atol=1e-7)


def test_a_decay_out_of_range_is_an_input_error():
    with pytest.raises(InputError, match=r"ema \(=1.5\)"):
        WeightEMA(decay=1.5)
