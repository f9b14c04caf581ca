"""Dropout that draws several numbers at once is dropout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.training.dropout import draw_in_words
from torch import nn


def dropout(share):
    layer = nn.Sequential(nn.Dropout(share))
    draw_in_words(layer)
    return layer


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_what_is_kept_is_scaled_and_so_are_its_gradients(shape, share, seed):
    values = torch.rand(shape) + 1
    values.requires_grad_()
    torch.manual_seed(seed)
    out = dropout(share)(values)
    out.sum().backward()
    kept = out != 0
    torch.testing.assert_close(out[kept], values[kept] / (1 - share))
    torch.testing.assert_close(values.grad, kept / (1 - share))
    torch.manual_seed(seed)
    torch.testing.assert_close(dropout(share)(values), out)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_right_share_is_dropped(share):
    torch.manual_seed(0)
    out = dropout(share)(torch.ones(1000, 1003))
    assert (out == 0).float().mean() == pytest.approx(share, abs=0.003)
    # No pattern: neighbours fall independently.
    both = ((out[:, 1:] == 0) & (out[:, :-1] == 0)).float().mean()
    assert both == pytest.approx(share**2, abs=0.003)


def test_nothing_is_dropped_outside_training():
    values = torch.rand(7)
    torch.testing.assert_close(dropout(0.5).eval()(values), values)
    torch.testing.assert_close(dropout(0.0)(values), values)
