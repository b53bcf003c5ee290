"""Checks of patches, on a sound toy and on toys broken in one way each."""

import pytest

from tests.conformance import patch_checks
from tests.conformance.harness import Broken
from tests.conformance.itself import toy_patches

PATCH_CHECKS = [
    patch_checks.identity_changes_nothing,
    patch_checks.attaching_changes_something,
    patch_checks.leaving_restores,
    patch_checks.detaching_restores,
    patch_checks.exception_restores,
    patch_checks.attaching_twice_is_refused,
    patch_checks.detaching_unattached_is_refused,
    patch_checks.other_hosts_are_untouched,
    patch_checks.weights_stay_named,
    patch_checks.generate_works,
    patch_checks.keeps_its_settings,
]


@pytest.mark.parametrize("check", PATCH_CHECKS)
def test_a_sound_patch_passes(check):
    check(toy_patches.patch())


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (patch_checks.leaving_restores, toy_patches.LeavesAFlag, "trace on leaving"),
        (patch_checks.detaching_restores, toy_patches.LeavesAHook, "trace after detach"),
        (patch_checks.leaving_restores, toy_patches.LeavesOtherWeights, "other weights"),
        (patch_checks.exception_restores, toy_patches.StaysAfterAnError, "after an exception"),
        (patch_checks.exception_restores, toy_patches.Swallows, "swallowed"),
        (patch_checks.attaching_twice_is_refused, toy_patches.Stacks, "twice raised nothing"),
        (
            patch_checks.detaching_unattached_is_refused,
            toy_patches.DetachesAnything,
            "raised nothing",
        ),
        (patch_checks.other_hosts_are_untouched, toy_patches.ReachesOthers, "not attached to"),
        (patch_checks.weights_stay_named, toy_patches.Renames, "while attached"),
        (patch_checks.keeps_its_settings, toy_patches.KeepsNothing, "'strength'"),
    ],
)
def test_a_broken_patch_is_found(check, kind, said):
    with pytest.raises(Broken, match=said):
        check(toy_patches.patch(kind))


def test_an_identity_that_changes_something_is_found():
    with pytest.raises(Broken, match="identity"):
        patch_checks.identity_changes_nothing(toy_patches.patch(identity=toy_patches.Louder))


def test_a_patch_that_does_nothing_is_found():
    with pytest.raises(Broken, match="does nothing"):
        patch_checks.attaching_changes_something(
            toy_patches.patch(make=lambda: toy_patches.Louder(1.0))
        )


def test_reload_must_give_the_patched_output(tmp_path):
    for name in ("sound", "forgets"):
        (tmp_path / name).mkdir()
    patch_checks.reload_gives_the_same(toy_patches.patch(), tmp_path / "sound")
    forgets = toy_patches.patch(reload=toy_patches._reload(lambda: toy_patches.Louder(3.0)))
    with pytest.raises(Broken, match="once reloaded"):
        patch_checks.reload_gives_the_same(forgets, tmp_path / "forgets")
