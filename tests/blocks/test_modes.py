"""Eval mode that leaves every part as it was, whatever happens in between."""

import pytest
from torch import nn

from trialrun.blocks.modes import evaluating


def parts():
    return nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout()))


def test_every_part_comes_back_into_its_own_mode():
    first, second = parts(), parts().eval()
    before = [part.training for net in (first, second) for part in net.modules()]
    with evaluating(first, second):
        assert not any(part.training for net in (first, second) for part in net.modules())
    assert [part.training for net in (first, second) for part in net.modules()] == before
    assert True in before
    assert False in before


def test_an_error_in_between_leaves_the_modes_as_they_were():
    net = parts()
    with pytest.raises(KeyError), evaluating(net):
        raise KeyError
    assert net[0].training
    assert not net[1][0].training
