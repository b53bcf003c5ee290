"""The bookkeeping of patches."""

import pytest

from trialrun.blocks.patching import (
    Patch,
    attached,
    mark_attached,
    patches_of,
    undo_attached,
)


class Host:
    tone = 1


class Raise:
    def __init__(self, name):
        self.name = name

    def attach(self, model):
        mark_attached(model, self.name, lambda host: setattr(host, "tone", host.tone - 1))
        model.tone += 1
        return model

    def detach(self, model):
        undo_attached(model, self.name)
        return model

    def attached(self, model):
        return attached(self, model)


def test_a_patch_satisfies_the_protocol():
    assert isinstance(Raise("a"), Patch)


def test_the_host_is_restored_when_the_body_raises():
    host, tones = Host(), []

    def body():
        with Raise("a").attached(host):
            tones.append(host.tone)
            raise RuntimeError("body")

    with pytest.raises(RuntimeError, match="body"):
        body()
    assert tones == [2]
    assert host.tone == 1
    assert patches_of(host) == ()


def test_a_second_attach_is_refused_and_leaves_the_first():
    host = Raise("a").attach(Host())
    with pytest.raises(ValueError, match="already attached"):
        Raise("a").attach(host)
    assert (host.tone, patches_of(host)) == (2, ("a",))


def test_patches_come_off_in_reverse_order_only():
    host = Raise("b").attach(Raise("a").attach(Host()))
    with pytest.raises(ValueError, match="detach b first"):
        Raise("a").detach(host)
    Raise("a").detach(Raise("b").detach(host))
    assert host.tone == 1


def test_detaching_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="not attached"):
        Raise("a").detach(Host())
