"""Ring worlds: geometry, graph, and the layouts' split."""

import numpy as np
import pytest

from trialrun.material.ring import ring_world


@pytest.mark.parametrize("layout", ["extrapolate", "interpolate"])
def test_points_lie_within_1_of_the_centre_of_their_class(layout):
    world = ring_world(seed=3, layout=layout, points=201, radius=1.5)
    sign = np.where(world.y == 1, 1.0, -1.0)[:, None]
    gap = np.linalg.norm(world.X - 1.5 * sign * world.metadata[world.domains], axis=1)
    assert gap.max() <= 1
    assert gap.max() > 0.9, "the cut-off is at 1, not closer"
    assert (world.y[world.domains == 0] == 0).sum() == 101


def test_the_cut_off_normal_has_the_mean_squared_length_of_its_formula():
    world = ring_world(seed=0, points=20_000, n_domains=4, radius=0.0, spread=0.5)
    edge = np.exp(-0.5 / 0.25)
    expected = 2 * 0.25 - edge / (1 - edge)  # of a 2-d normal given a length of at most 1
    assert (world.X**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.02)


def test_extrapolation_tests_the_second_quarter_of_the_circle_only():
    for seed in range(20):
        world = ring_world(seed=seed, points=2)
        assert world.angles[world.train].max() < np.pi / 2 <= world.angles[world.test].min()
        assert len(world.train) == 6
        assert len(world.test) == 9


def test_interpolation_reaches_the_whole_circle_and_never_tests_a_training_domain():
    angles = []
    for seed in range(20):
        world = ring_world(seed=seed, layout="interpolate", points=2)
        assert not set(world.train) & set(world.test)
        assert len(world.train) + len(world.test) == 15
        angles.extend(world.angles[world.train])
    assert np.histogram(angles, bins=4, range=(0, 2 * np.pi))[0].min() > 10


def test_the_graph_joins_no_domains_more_than_60_degrees_apart_and_is_symmetric():
    joined = 0
    for seed in range(20):
        world = ring_world(seed=seed, points=2)
        cosine = np.cos(world.angles[:, None] - world.angles)
        assert not world.adjacency[cosine < 0.5].any()
        assert np.array_equal(world.adjacency, world.adjacency.T)
        joined += world.adjacency[(cosine > 0.9) & (cosine < 1)].mean() / 20
    assert 0.85 < joined < 1


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    first, again, other = (ring_world(seed=seed, points=5) for seed in (1, 1, 2))
    assert np.array_equal(first.X, again.X)
    assert not np.allclose(first.angles, other.angles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "line"}, "layout must be one of extrapolate, interpolate, got 'line'"),
        ({"n_domains": 3}, "n_domains must be at least 4, got 3"),
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"spread": 0}, "spread must be above 0, got 0"),
        ({"radius": -1}, "radius must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ring_world(seed=0, **change)
