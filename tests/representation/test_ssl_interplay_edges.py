"""What goes wrong at the edges of ssl_interplay is refused in a sentence, or does not go wrong."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from trialrun.claims.contract import Context
from trialrun.core.seeds import rng
from trialrun.dossiers.ssl_interplay import bits, claim, moons
from trialrun.representation.ssl_interplay import (
    KernelVCReg,
    VCRegLoss,
    interplay_path,
    interplay_spectrum,
    jitter,
    plot_interplay,
    switch_points,
    vcreg_loss,
)

X = rng(0, "edges").normal(size=(12, 2))


def fit(**settings):
    return KernelVCReg(**{"gamma": 0.8, "n_components": 3, "reg": 1e-2, **settings}).fit(X)


def context():
    return Context(budget=claim.TRIAL.budgets["smoke"], seed=0)


def in_place(rows, random):
    rows += random.normal(size=rows.shape)
    return rows


def test_an_augment_in_place_leaves_x_alone_and_gives_different_views():
    mine = X.copy()
    model = KernelVCReg(gamma=0.8, reg=1e-2, random_state=0)
    found = model.set_params(augment=in_place).fit(mine)
    np.testing.assert_array_equal(mine, X)
    pure = fit(n_components=6, augment=partial(jitter, scale=1.0), random_state=0)
    np.testing.assert_allclose(found.eigenvalues_, pure.eigenvalues_, atol=1e-12)


def test_save_keeps_kernel_params_and_names_and_takes_text(tmp_path):
    frame = pd.DataFrame(X, columns=["a", "b"])
    params = {"degree": np.int64(2), "coef0": np.float32(0.5)}
    found = KernelVCReg(kernel="polynomial", kernel_params=params, reg=1e-2).fit(frame)
    found.save(str(tmp_path))
    again = KernelVCReg.load(str(tmp_path))
    np.testing.assert_allclose(again.transform(frame), found.transform(frame), atol=1e-12)
    assert again.kernel_params == {"degree": 2, "coef0": 0.5}
    assert again.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        again.transform(frame.rename(columns={"a": "c"}))


def test_save_refuses_what_no_file_holds(tmp_path):
    found = fit()
    found.kernel_params = {"degree": object()}
    with pytest.raises(ValueError, match=r"kernel_params\['degree'\] must be text, a number"):
        found.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
def test_a_refit_after_load_warns_that_augment_is_gone(tmp_path):
    augment = partial(jitter, scale=0.1)
    fit(augment=augment).save(tmp_path)
    again = KernelVCReg.load(tmp_path)
    with pytest.warns(UserWarning, match="augment was not saved"):
        again.fit(X)
    KernelVCReg.load(tmp_path).fit(X, groups=np.arange(12) // 2)
    KernelVCReg.load(tmp_path).set_params(augment=augment).fit(X)


@pytest.mark.parametrize("solver", ["exact", "nystroem"])
def test_a_tol_of_zero_stops_at_rounding(solver):
    rows = np.repeat(X, 2, axis=0)  # every view twice: half the Gram matrix is null
    settings = {"gamma": 0.1, "n_components": 20, "reg": 0.0, "solver": solver, "random_state": 0}
    found = KernelVCReg(tol=0.0, **settings).fit(rows, groups=np.arange(24) // 4)
    assert np.isfinite(found.transform(rows)).all()
    assert np.isneginf(found.eigenvalues_[12:]).all()
    assert (found.eigenvalues_[:12] <= 1 + 1e-6).all()


def lopsided(a, b):
    return float(a @ b + a[0] - b[0])


@pytest.mark.parametrize("solver", ["exact", "nystroem"])
@pytest.mark.parametrize("reg", [0.0, 1e-2, 10.0])
@pytest.mark.parametrize(
    ("kernel", "params", "what"),
    [
        (lambda a, b: -float(a @ b), None, "positive semi-definite"),
        (lopsided, None, "symmetric"),
        (lambda *_: float("nan"), None, "finite number"),
        ("polynomial", {"degree": 2, "coef0": -1.0}, "positive semi-definite"),
    ],
)
def test_what_is_no_kernel_is_refused_at_every_reg(kernel, params, what, solver, reg):
    with pytest.raises(ValueError, match=what):
        fit(kernel=kernel, kernel_params=params, solver=solver, reg=reg)


@pytest.mark.parametrize("reg", [0.0, 1e-2, 10.0])
def test_a_gram_matrix_that_is_no_kernel_is_refused_at_every_reg(reg):
    model = KernelVCReg(kernel="precomputed", reg=reg)
    for gram in (np.diag([1.0, -0.01, 2.0]), -np.eye(3), [[1.0, 2.0], [2.0, 1.0]]):
        with pytest.raises(ValueError, match="positive semi-definite"):
            model.fit(gram)
    with pytest.raises(ValueError, match="symmetric"):
        model.fit([[1.0, 0.5], [0.0, 1.0]])
    rounded = rbf_kernel(X, gamma=0.01).astype(np.float32)
    assert model.fit(rounded).collapsed_.shape == (6,)
    assert model.fit(np.zeros((3, 3))).collapsed_.all()


@pytest.mark.parametrize(
    "labels", [[0.0, np.nan] * 6, [0, None] * 6, ["a", np.nan] * 6, np.array(["NaT"] * 12, "M8[s]")]
)
def test_a_label_that_is_missing_is_refused(labels):
    with pytest.raises(ValueError, match="groups must say the input of every view"):
        KernelVCReg().fit(X, groups=np.array(labels, dtype=getattr(labels, "dtype", object)))


def test_labels_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match="labels of one kind"):
        KernelVCReg().fit(X, groups=np.array([0, "a"] * 6, dtype=object))


def _short(rows):
    return rows


REFUSED = [
    ({"gamma": np.inf}, "gamma must be above 0, a finite number"),
    ({"gamma": "scale"}, "gamma must be above 0, a finite number"),
    ({"gamma": np.ones(2)}, "gamma must be above 0.*shape"),
    ({"gamma": True}, "gamma must be above 0, a finite number"),
    ({"kernel": np.eye(12)}, "use kernel='precomputed'"),
    ({"kernel_params": [("degree", 2)]}, "kernel_params must be a dict"),
    ({"kernel_params": {"gamma": 2.0}}, "set gamma by its own argument"),
    ({"kernel": lambda a, b: float(a @ b), "kernel_params": {"metric": 1}}, "not X, Y, metric"),
    ({"kernel": "polynomial", "kernel_params": {"degree": "two"}}, "must be a finite number"),
    ({"center": "yes"}, "center must be True or False"),
    ({"augment": _short}, r"augment must be a function of \(X, generator\)"),
    ({"reg": "much"}, "reg must be a finite number"),
]


@pytest.mark.parametrize(("settings", "what"), REFUSED)
def test_a_setting_out_of_range_is_one_sentence(no_annotation_checks, settings, what):
    with pytest.raises(ValueError, match=what):
        fit(**settings)


def test_views_that_cannot_be_are_refused(no_annotation_checks):
    with pytest.raises(ValueError, match="unequal numbers of views"):
        KernelVCReg().fit(views=[[[1.0], [2.0]], [[1.0]]])
    with pytest.raises(ValueError, match="views must be None with kernel='precomputed'"):
        KernelVCReg(kernel="precomputed").fit(views=np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="regs must be finite numbers"):
        interplay_path(X, regs="log")
    with pytest.raises(ValueError, match="model must be a KernelVCReg"):
        interplay_path(X, model="rbf")


def test_fit_transform_takes_views_and_groups():
    views = X.reshape(6, 2, 2)
    model = KernelVCReg(gamma=0.8, n_components=3, reg=1e-2)
    z = model.fit_transform(views=views)
    np.testing.assert_array_equal(z, model.transform(X))
    by_groups = model.fit_transform(X, groups=np.repeat(np.arange(6), 2))
    np.testing.assert_allclose(np.abs(by_groups), np.abs(z), atol=1e-12)
    frame = model.set_output(transform="pandas").fit_transform(pd.DataFrame(X, columns=["a", "b"]))
    assert frame.columns.tolist() == ["kernelvcreg0", "kernelvcreg1", "kernelvcreg2"]


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_spectrum_has_a_whole_number_of_components(no_annotation_checks, count):
    with pytest.raises(ValueError, match="n_components must be a whole number"):
        interplay_spectrum([0.5], [1.0], n_components=count)


def test_known_operators_must_be_there_and_finite(no_annotation_checks):
    with pytest.raises(ValueError, match="augmentation must hold eigenvalues"):
        interplay_spectrum([], [])
    with pytest.raises(ValueError, match="eigenvalue above 0"):
        interplay_spectrum([0.5, 0.2], [0.0, 0.0])
    with pytest.raises(ValueError, match="reg must be a finite number"):
        interplay_spectrum([0.5], [1.0], reg=np.inf)
    for t, norms in [([np.nan], [1.0]), ([0.5], [np.inf]), ([np.inf, 0.5], [1.0, 0.5])]:
        with pytest.raises(ValueError, match="must be finite numbers"):
            switch_points(t, norms)


def test_what_the_views_choose_does_not_depend_on_the_regs_of_a_path():
    model = KernelVCReg(gamma=0.8, n_components=3, random_state=0)
    augment = partial(jitter, scale=0.3)
    long = interplay_path(X, augment, regs=[1e-6, 0.02, 0.2], model=model)
    short = interplay_path(X, augment, regs=[0.02, 0.2], model=model)
    np.testing.assert_allclose(short.augmentation_share, long.augmentation_share[1:], atol=1e-9)
    assert short.augmentation_share[0] < 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cross", ["halves", "pairs", "plain"])
def test_half_precision_is_summed_in_single(dtype, cross):
    first, second = 4 * torch.randn(2, 512, 8, generator=torch.Generator().manual_seed(0))
    first, second = first.to(dtype), second.to(dtype)
    exact = vcreg_loss(first.double(), second.double(), cross=cross)
    loss = vcreg_loss(first, second, cross=cross)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vcreg_loss(first.float(), second.float(), cross=cross)
    assert float(mixed) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("beta", [-1.0, np.nan, np.inf, "1"])
def test_the_loss_refuses_a_beta_in_both_forms(no_annotation_checks, beta):
    z = torch.zeros(4, 2)
    for call in (lambda: vcreg_loss(z, z, beta=beta), lambda: VCRegLoss(beta)):
        with pytest.raises(ValueError, match="beta must be a finite number"):
            call()


def test_the_probe_does_not_depend_on_the_scale_of_the_features():
    points, test, draws = moons.few_moons(context())
    found: list[list[float]] = [[], []]
    for seed in range(20):
        z = [rng(seed, "probe", part).normal(size=(len(m.points), 4)) for part, m in
             (("inputs", points), ("test", test))]  # fmt: skip
        for scale, scores in zip((1.0, 1e-4), found):
            scores.append(moons.probes(scale * z[0], scale * z[1], points, test, draws))
    assert found[0] == found[1]
    assert 0 <= moons.probes(0 * z[0], 0 * z[1], points, test, draws) <= 1


def test_the_kernel_alone_is_measured_and_tied_lambdas_are_averaged(monkeypatch):
    alone = bits.switches(context(), how="kernel-alone").points
    assert alone["all collapse"] == 100.0  # not within the path: 1 / .125 is 8
    assert min(alone.values()) > 50

    def right(*_, scale, reg, **__):
        return float(reg >= 1e-3 if scale > 0.5 else reg <= 1e-3)

    monkeypatch.setattr(moons, "_ssl_accuracy", right)
    found = moons.tuning(context(), how="ssl")
    assert found.points == {"value": 200.0}
    assert found.extra["best log lambda at 0.05"] == pytest.approx((-6 - 4 - 3) / 3)
    assert found.extra["best log lambda at 0.6"] == pytest.approx(-2.0)


def test_every_arm_has_a_setting_from_its_grid():
    assert moons.chosen([context()]).keys() == moons.CHOSEN.keys()
    assert all(moons.CHOSEN[how] in grid for how, grid in moons.GRIDS.items())


def test_the_band_of_collapse_begins_where_the_last_curve_meets_zero():
    inputs = rng(0, "X").normal(size=(30, 2))
    path = interplay_path(inputs, partial(jitter, scale=0.3), regs=np.logspace(-3, 1, 9))
    first = path.regimes.index("collapse")
    upper = plot_interplay(path).axes[0]
    best = path.eigenvalues.max(axis=1)
    edge = next(
        band.get_x() for band in upper.patches
        if np.allclose(band.get_facecolor()[:3], 0xC9 / 255) and band.get_x() < path.regs[first]
    )  # fmt: skip
    crossing = np.interp(
        0, -best[first - 1 : first + 1], np.log10(path.regs[first - 1 : first + 1])
    )
    assert np.log10(edge) == pytest.approx(crossing)


def test_inputs_without_a_second_view_are_warned_of():
    X = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(UserWarning, match="augment is None, so fit sees every input as its only"):
        KernelVCReg(n_components=2).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KernelVCReg(n_components=2).fit(X, groups=np.arange(30) // 2)
