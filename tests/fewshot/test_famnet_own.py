"""The check of famnet on volumes of the user's own: split, refused, measured, kept."""

import nibabel
import numpy as np
import pytest
import torch

from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.dossiers.famnet.claim import TRIAL, check_on, keep, resplit
from trialrun.dossiers.famnet.own import SINGLE, own_parts, read_own
from trialrun.fewshot._famnet_prepare import _resize

SIDE = 40


def write(root, name, values, *, part="images", spacing=2.0):
    path = root / part / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([spacing, spacing, 4.0, 1.0])), path)


def person(root, name, seed=0, organs=(1, 2), *, shape=(40, 36, 4), invert=False):
    """Write a bright block with two organs in it, and its labels, as a scanner's axes have them."""
    random = rng(seed, name)
    marks = np.zeros(shape, dtype=np.uint8)
    y, x = random.integers(6, 10, 2)
    for number, organ in enumerate(organs):
        marks[y + 12 * number : y + 12 * number + 10, x : x + 12] = organ
    image = np.zeros(shape, dtype=np.float32)
    image[3:-3, 3:-3] = 100
    image = image + 40 * marks + random.normal(scale=2, size=shape)
    write(root, name, (300 - image if invert else image).astype(np.float32))
    write(root, name, marks, part="labels")


def context(folder, seed=0, **options):
    on = On("volumes", str(folder), {k.rstrip("_"): v for k, v in options.items()})
    return Context(budget=TRIAL.budgets["smoke"], seed=seed, on=on)


@pytest.fixture
def one(tmp_path):
    for i in range(4):
        person(tmp_path, f"p{i}", i)
    return tmp_path


@pytest.fixture
def two(tmp_path):
    for i in range(3):
        person(tmp_path / "mr", f"p{i}", i)
        person(tmp_path / "ct", f"p{i + 2}", i, invert=True)
    return tmp_path


def test_one_folder_is_split_by_volume_and_differently_per_seed(one):
    own = read_own(context(one).on, SIDE)
    assert own.single
    splits = set()
    for seed in range(6):
        parts = own_parts(own, seed, most=9)
        exam = parts.exams[SINGLE]
        assert (len(parts.train), len(exam.images)) == (2, 2)
        for image in exam.images:
            assert all(not np.array_equal(image, other) for other in parts.train)
        assert [ask[1:] for ask in exam.asks] == [(0, 1), (0, 1)]
        splits.add(round(float(exam.images[0][:, 10].sum()), 4))
    assert len(splits) > 1
    assert resplit(context(one)) == 2.0
    assert len(own_parts(own, 0, most=1).train) == 1


def test_one_modality_is_trained_on_and_a_tested_case_never(two):
    own = read_own(context(two, domain="mr").on, SIDE)
    assert not own.single
    assert [v.case for v in own.source] == ["p0", "p1", "p2"]
    for seed in range(6):
        parts = own_parts(own, seed, most=9)
        (exam,) = parts.exams.values()
        shown = [i for i, v in enumerate(own.targets["ct"])
                 if any(np.array_equal(v.image, image) for image in exam.images)]  # fmt: skip
        # p2 is the first of the tested folder, and the third of the one that is trained on.
        assert len(parts.train) == (2 if 0 in shown else 3)


def test_the_support_is_a_volume_that_shows_the_organ(tmp_path):
    person(tmp_path / "mr", "source")
    for name, organs in (("a", (1,)), ("b", (1, 2)), ("c", (1, 2)), ("d", (1,))):
        person(tmp_path / "ct", name, organs=organs)
    own = read_own(context(tmp_path, domain="mr").on, SIDE)
    asked = set()
    for seed in range(12):
        exam = own_parts(own, seed, most=9).exams["ct"]
        asked.add(len(exam.asks))
        for organ, support, query in exam.asks:
            assert (exam.labels[support] == organ).any()
            assert (exam.labels[query] == organ).any()
    # An organ that one held-out volume alone shows is not asked about.
    assert asked == {1, 2}


def test_all_volumes_share_one_spacing_at_which_the_widest_fits(tmp_path):
    for i in range(2):
        person(tmp_path, f"wide{i}", i)
    person(tmp_path, "small", shape=(30, 26, 4))
    own = read_own(context(tmp_path).on, SIDE)
    assert own.spacing == pytest.approx(40 * 2.0 / SIDE)
    assert {v.image.shape for v in own.source} == {(4, SIDE, SIDE)}
    assert {v.spacing for v in own.source} == {(4.0, own.spacing, own.spacing)}


def test_broken_files_are_skipped_counted_and_named(one, capsys):
    (one / "images/bad.nii.gz").write_bytes(b"not a volume")
    (one / "labels/bad.nii.gz").write_bytes(b"not a volume")
    write(one, "bare", np.ones((9, 9, 3), np.float32))
    write(one, "other", np.random.default_rng(0).normal(size=(40, 36, 4)).astype(np.float32))
    write(one, "other", np.ones((40, 30, 4), np.uint8), part="labels")
    check_on(context(one))
    told = capsys.readouterr().err
    assert "3 files were skipped" in told
    assert "bad.nii.gz (" in told
    assert "bare.nii.gz (it has no label file)" in told
    assert "other.nii.gz (labels must have the image's shape" in told
    assert "no contrast changes" in told


def test_a_flat_or_odd_file_does_not_set_the_spacing(one, capsys):
    write(one, "flat", np.ones((400, 400), np.float32))
    write(one, "flat", np.ones((400, 400), np.uint8), part="labels")
    odd = nibabel.Nifti1Image(np.ones((40, 36, 4), np.float32), np.eye(4))
    odd.header["pixdim"][1] = np.inf
    nibabel.save(odd, one / "images/odd.nii.gz")
    assert read_own(context(one).on, SIDE).spacing == pytest.approx(40 * 2.0 / SIDE)
    check_on(context(one))
    assert "2 files were skipped" in capsys.readouterr().err


def _no_labels(root):
    for path in (root / "labels").iterdir():
        path.unlink()


def _no_foreground(root):
    for i in range(4):
        write(root, f"p{i}", np.zeros((40, 36, 4), np.uint8), part="labels")


def _two_left(root):
    for i in range(2):
        (root / f"images/p{i}.nii.gz").write_bytes(b"x")


def _one_left(root):
    for i in range(1, 4):
        (root / f"images/p{i}.nii.gz").unlink()


def _other_size(root):
    for i in range(4):
        write(root, f"p{i}", np.ones((40, 30, 4), np.uint8), part="labels")


def _apart(root):
    for i in range(4):
        write(root, f"p{i}", np.full((40, 36, 4), 9 + i, np.uint8), part="labels")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_labels, "got 4 images and 0 labels, none readable: p0.nii.gz: it has no label file"),
        (_other_size, "none readable: p0.nii.gz: labels must have the image's shape"),
        (_no_foreground, "must mark an organ, got no foreground in any of 4 volumes"),
        (_one_left, "at least 3 labelled volumes are needed .*, got 1"),
        (_two_left, "at least 3 labelled volumes .*, got 2: 2 files were skipped: p0.nii.gz"),
        (_apart, "no organ shows in two of the 2 volumes held out"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(one, spoil, words):
    spoil(one)
    with pytest.raises(UsageError, match=words) as caught:
        check_on(context(one))
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_or_lacks_a_modality_is_refused(one, two):
    # Both fixtures share the folder: images/ and labels/ beside mr/ and ct/.
    for path, options, words in (
        (one / "images/p0.nii.gz", {}, "is no folder"),
        (two, {"domain": "pet"}, "--domain must be one of at least two folders"),
        (two, {"domain": "mr", "as_": "mr=chaos"}, "--as must name a layout for each of mr, ct"),
        (two / "mr", {"as_": "dicom"}, "layout must be one of"),
    ):
        with pytest.raises(UsageError, match=words):
            check_on(context(path, **options))
    with pytest.raises(UsageError, match="not a model"):
        check_on(Context(budget=TRIAL.budgets["smoke"], seed=0, model="x"))


def test_the_modality_that_is_trained_on_needs_no_labels(two, capsys):
    for path in (two / "mr" / "labels").iterdir():
        path.unlink()
    check_on(context(two, domain="mr"))
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="3 images and 0 labels"):
        check_on(context(two, domain="ct"))


def test_two_modalities_without_a_choice_are_named(two):
    with pytest.raises(UsageError, match="a folder for each of ct, mr: add --domain"):
        check_on(context(two))


def test_the_same_persons_everywhere_leave_nothing_to_train_on(tmp_path):
    for folder in ("mr", "ct"):
        for i in range(2):
            person(tmp_path / folder, f"p{i}", i)
    with pytest.raises(UsageError, match="no volume is left to train on at seed 0"):
        check_on(context(tmp_path, domain="mr"))


def test_arms_are_measured_on_own_volumes_and_the_network_loads(two, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    given = context(two, domain="mr")
    ctx = Context(budget=given.budget, seed=0, on=given.on, prepared_root=root)
    for name, step in TRIAL.prepare.items():
        ctx.prepared(name).mkdir()
        step(ctx, ctx.prepared(name))
    for arm in ("famnet", "prototype", "other-organ"):
        measured = TRIAL.arms["matching"][arm](ctx)
        assert set(measured.points) == {"ct"}
        assert measured.n == 2
        assert 0 <= measured.points["ct"] <= 100
    kept = tmp_path_factory.mktemp("kept")
    names: dict = {}
    exec(keep(ctx, kept), names)
    pred, _ = names["net"](
        torch.rand(1, 1, 48, 48), torch.ones(1, 48, 48), torch.rand(1, 1, 48, 48)
    )
    assert pred.shape == (1, 2, 48, 48)


def test_volumes_without_usable_regions_are_refused(one, tmp_path):
    for i in range(4):
        person(one, f"p{i}", i, shape=(40, 36, 1))
    ctx = Context(budget=TRIAL.budgets["smoke"], seed=0, on=context(one).on, prepared_root=tmp_path)
    ctx.prepared("networks").mkdir()
    with pytest.raises(UsageError, match="supervoxels of 40 pixels on two neighbouring slices"):
        TRIAL.prepare["networks"](ctx, ctx.prepared("networks"))


def test_shrinking_an_axis_averages_fine_texture():
    stripes = np.tile([0.0, 1.0], 32)[None]
    assert np.ptp(_resize(stripes, 1, 16)) < 0.1
    ramp = np.arange(6.0)[None]
    np.testing.assert_allclose(_resize(ramp, 1, 12)[0, 3], 1.25)
    np.testing.assert_allclose(_resize(ramp, 1, 6), ramp)
