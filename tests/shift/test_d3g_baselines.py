"""The rivals of D3G's check: each penalty does what its formula says."""

import numpy as np
import pytest
import torch

from trialrun.shift._baselines import PooledNetwork, _spread, coral_penalty, domain_means
from trialrun.shift.d3g import Training


def members(index, n_domains):
    return torch.nn.functional.one_hot(torch.tensor(index), n_domains).double()


def naive_coral(features, index, n_domains):
    means, covariances = [], []
    for d in range(n_domains):
        rows = features[[i for i, domain in enumerate(index) if domain == d]]
        means.append(rows.mean(dim=0))
        covariances.append(torch.cov(rows.T))
    total = 0.0
    for one in range(n_domains):
        for other in range(n_domains):
            total += ((means[one] - means[other]) ** 2).mean()
            total += ((covariances[one] - covariances[other]) ** 2).mean()
    return total / n_domains**2


def test_coral_is_the_mean_gap_between_pairs_of_domains():
    index = [0, 2, 1, 1, 0, 2, 2, 0, 1, 0]
    features = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        coral_penalty(features, members(index, 3)), naive_coral(features, index, 3)
    )


def test_a_domain_missing_from_the_batch_changes_no_penalty():
    index = [0, 1, 1, 0, 0, 1]
    features = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        coral_penalty(features, members(index, 2)), coral_penalty(features, members(index, 4))
    )
    risks = domain_means(features[:, 0], members(index, 4))
    present = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(_spread(risks, present) / 2, risks[:2].var(unbiased=False))


def test_groupdro_serves_the_hard_domain_better_than_the_mean_does():
    rng = np.random.default_rng(0)
    domains = np.repeat([0, 1], [180, 20])
    X = rng.normal(size=(200, 1))
    y = np.where(domains == 0, X[:, 0], -X[:, 0])
    rare = domains == 1
    errors = {}
    for objective in ("erm", "groupdro"):
        model = PooledNetwork(
            objective=objective, strength=0.1, classes=False, random_state=0,
            training=Training(steps=300),
        ).fit(X, y, domains)  # fmt: skip
        errors[objective] = ((model.predict(X[rare]) - y[rare]) ** 2).mean()
    assert errors["groupdro"] < 0.8 * errors["erm"]


def test_vrex_makes_the_domains_risks_alike():
    rng = np.random.default_rng(0)
    domains = np.repeat([0, 1], [150, 50])
    X = rng.normal(size=(200, 1))
    y = np.where(domains == 0, X[:, 0], 0.0)
    gaps = {}
    for objective in ("erm", "vrex"):
        model = PooledNetwork(
            objective=objective, strength=20.0, classes=False, random_state=0,
            training=Training(steps=300),
        ).fit(X, y, domains)  # fmt: skip
        errors = (model.predict(X) - y) ** 2
        gaps[objective] = abs(errors[domains == 0].mean() - errors[domains == 1].mean())
    assert gaps["vrex"] < 0.5 * gaps["erm"]


@pytest.mark.parametrize("objective", ["erm", "groupdro", "vrex", "coral"])
def test_strength_0_is_plain_risk_minimisation_save_for_even_weights(objective):
    rng = np.random.default_rng(0)
    X, domains = rng.normal(size=(80, 2)), np.tile([0, 1], 40)
    predictions = [
        PooledNetwork(
            objective=name, strength=0.0, random_state=1,
            training=Training(steps=20, batch_size=None),
        ).fit(X, X[:, 0] > 0, domains).predict(X)
        for name in ("erm", objective)
    ]  # fmt: skip
    np.testing.assert_array_equal(*predictions)


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="objective must be one of erm, groupdro, vrex, coral"):
        PooledNetwork(objective="irm").fit(np.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
