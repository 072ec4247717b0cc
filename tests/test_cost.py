"""Laws of measuring: what was alive at once, and ratios within rounds."""

import pandas as pd
import pytest
import torch

from dml import cost

MEGA = 4 * 1000 * 1000  # bytes of a thousand by a thousand


def test_peak_memory_counts_what_is_alive_at_once_and_views_not_at_all():
    def three_of_which_two_at_once():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        return (b * 2).view(-1)

    assert cost.peak_memory(three_of_which_two_at_once) == 2 * MEGA


def test_peak_memory_leaves_out_what_was_there_before():
    given = torch.zeros(1000, 1000)
    assert cost.peak_memory(lambda: given.add_(1)) == 0
    assert cost.peak_memory(lambda: given + 1) == MEGA


def test_peak_memory_sees_what_is_kept_for_the_backward_pass():
    x = torch.zeros(1000, 1000, requires_grad=True)
    assert cost.peak_memory(lambda: x.exp().sum().backward()) >= 2 * MEGA


def test_ratios_are_taken_within_rounds():
    measured = pd.DataFrame({"one": [1.0, 10.0, 2.0], "two": [2.0, 20.0, 6.0]})
    assert cost.ratios(measured, "one")["two"] == 2


def test_every_round_times_every_call():
    count = {"a": 0, "b": 0}

    def add(name):
        count[name] += 1

    table = cost.seconds({name: lambda name=name: add(name) for name in count}, rounds=3, warm_up=1)
    assert count == {"a": 4, "b": 4} and table.shape == (3, 2)
    assert (table >= 0).all(axis=None)
    assert cost.ratios(table + 1, "a")["a"] == pytest.approx(1)
