"""Diagnose a self-supervised set-up before training: who decides, and what will collapse.

Points on two half-moons, views by jitter. The path says how many components live at which weight
decay; the closed form at one of them then serves a classifier that has 8 labels only.
"""

from functools import partial

import numpy as np
from sklearn.linear_model import RidgeClassifier

from trialrun.representation.ssl_interplay import KernelVCReg, interplay_path, jitter


def half_moons(n, rng):
    """Return n points and which half-moon each is on."""
    turn, side = np.pi * rng.random(n), np.arange(n) % 2
    X = np.column_stack([np.cos(turn), np.sin(turn)])
    X[side == 1] = [1.0, 0.5] - X[side == 1]
    return X + 0.1 * rng.normal(size=X.shape), side


def main():
    """Print the path, then the accuracy with 8 labels."""
    rng = np.random.default_rng(0)
    X, side = half_moons(80, rng)
    augment = partial(jitter, scale=0.15)
    model = KernelVCReg(gamma=5.6, n_components=6, reg=1e-4, augment=augment, random_state=0)

    path = interplay_path(X, regs=[1e-4, 1e-2, 0.08, 1.0], model=model)
    for reg, alive, regime in zip(path.regs, path.alive, path.regimes):
        print(f"components alive at lambda {reg:g}: {alive} of 6 ({regime})")

    labelled = np.concatenate([np.flatnonzero(side == c)[:4] for c in (0, 1)])
    probe = RidgeClassifier(alpha=1e-3).fit(model.fit_transform(X)[labelled], side[labelled])
    X_new, side_new = half_moons(1000, rng)
    score = probe.score(model.transform(X_new), side_new)
    print(f"accuracy on fresh points with 8 labels: {score:.2f}")


if __name__ == "__main__":
    main()
