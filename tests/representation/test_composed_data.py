"""Loaders and protocols of CIRR, Fashion-IQ, COCO and ImageNet-R, on made-up folders."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.core.errors import UsageError
from trialrun.representation.composed_data import (
    read_cirr,
    read_coco,
    read_fashion_iq,
    read_imagenet_r,
)
from trialrun.representation.composed_protocols import (
    evaluate_cirr,
    evaluate_coco,
    evaluate_fashion_iq,
    evaluate_imagenet_r,
)
from trialrun.representation.pic2word import (
    ImageToWord,
    Preprocess,
    as_clip,
    embed_pictures,
    find_pictures,
    open_picture,
    text_only,
)
from trialrun.representation.tiny_clip import TinyClip, WordTokenizer

PREPARE = Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def clip():
    words = WordTokenizer(("a", "photo", "of", "and", "red", "cartoon", "toy", "cat", "dog"))
    model = TinyClip(words.vocab_size, size=8, embed_dim=12, width=8, layers=1, heads=2,
                     channels=(4,))  # fmt: skip
    return as_clip(model.eval(), words)


@pytest.fixture(scope="module")
def mapper():
    return ImageToWord(12, 8, hidden=5)


def picture(path, seed=0, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_cirr(root, split="val"):
    names = [f"dev-{i}" for i in range(5)]
    for i, name in enumerate(names):
        picture(root / "dev" / f"{name}.png", i)
    write(root / "image_splits" / f"split.rc2.{split}.json", {n: f"./dev/{n}.png" for n in names})
    pairs = [
        {"pairid": 7, "reference": "dev-0", "target_hard": "dev-1", "caption": "red"},
        {"pairid": 8, "reference": "dev-2", "target_hard": "dev-3", "caption": "a red cat"},
    ]
    write(root / "captions" / f"cap.rc2.{split}.json", pairs)


def test_cirr(tmp_path, clip, mapper):
    make_cirr(tmp_path)
    data = read_cirr(tmp_path)
    assert data.prompts == ("a photo of * , red", "a photo of * , a red cat")
    assert (data.references, data.targets, data.pair_ids) == ((0, 2), (1, 3), (7, 8))
    scored = evaluate_cirr(clip, PREPARE, mapper, data, ks=(1, 4))
    assert set(scored.arms) == {"composed", "image", "text", "mixture"}
    # Four pictures are left once the reference is out, so the first four hold every target.
    assert all(arm[4] == 1.0 for arm in scored.arms.values())
    assert (scored.queries, scored.dropped, scored.skipped) == (2, 0, ())


def test_cirr_drops_queries_whose_pictures_are_damaged_and_names_them(tmp_path, clip, mapper):
    make_cirr(tmp_path)
    (tmp_path / "dev" / "dev-1.png").write_bytes(b"no picture")
    (tmp_path / "dev" / "dev-4.png").unlink()
    with pytest.warns(
        UserWarning, match="2 of 5 pictures could not be read and are left out: .*dev-1"
    ):
        scored = evaluate_cirr(clip, PREPARE, mapper, read_cirr(tmp_path), ks=(1, 2))
    assert (scored.queries, scored.dropped) == (1, 1)
    assert [name.rpartition("/")[2] for name, _ in scored.skipped] == ["dev-1.png", "dev-4.png"]
    assert "no such file" in scored.skipped[1][1]


def test_cirr_says_what_is_wrong(tmp_path, clip, mapper):
    with pytest.raises(UsageError, match=r"CIRR needs the file .*split\.rc2\.val\.json"):
        read_cirr(tmp_path)
    make_cirr(tmp_path)
    told = tmp_path / "captions" / "cap.rc2.val.json"
    write(told, [{"pairid": 1, "reference": "dev-9", "target_hard": "dev-1", "caption": "x"}])
    with pytest.raises(UsageError, match="1 that are not, the first 'dev-9'"):
        read_cirr(tmp_path)
    write(told, [{"pairid": 1, "reference": "dev-0", "caption": "x"}])
    data = read_cirr(tmp_path)
    assert data.targets is None
    with pytest.raises(UsageError, match="has no targets"):
        evaluate_cirr(clip, PREPARE, mapper, data)
    told.write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON"):
        read_cirr(tmp_path)


@pytest.mark.parametrize(("folder", "suffix"), [("captions", "png"), ("json", "jpg")])
def test_fashion_iq(tmp_path, clip, mapper, folder, suffix):
    for garment in ("dress", "shirt"):
        names = [f"{garment}{i}" for i in range(3)]
        for i, name in enumerate(names):
            picture(tmp_path / "images" / f"{name}.{suffix}", i)
        write(tmp_path / "image_splits" / f"split.{garment}.val.json", names)
        pair = {"candidate": names[0], "target": names[2], "captions": ["red", "a cat"]}
        write(tmp_path / folder / f"cap.{garment}.val.json", [pair])
    data = [read_fashion_iq(tmp_path, garment) for garment in ("dress", "shirt")]
    assert data[0].prompts == ("a photo of * , a cat and red",)  # second caption first
    scored = evaluate_fashion_iq(clip, PREPARE, mapper, data, ks=(1, 3))
    assert set(scored.arms["composed"]) == {"dress", "shirt", "average"}
    assert scored.arms["text"]["average"][3] == 1.0
    assert scored.queries == 2
    with pytest.raises(UsageError, match="garment must be one of dress, shirt, toptee"):
        read_fashion_iq(tmp_path, "hat")


def make_coco(root):
    for i in (1, 2, 3):
        picture(root / "val2017" / f"{i:012d}.jpg", i, size=(20, 10))
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [2, 2, 6, 6], "segmentation": square},
        {"image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 9], "segmentation": square},
        {"image_id": 2, "category_id": 2, "bbox": [1, 0, 2, 10],
         "segmentation": {"size": [10, 20], "counts": [10, 20, 170]}},
        {"image_id": 3, "category_id": 2, "bbox": [0, 0, 20, 10], "segmentation": square},
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 20, "height": 10} for i in (3, 2, 1)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    told = {"images": images, "annotations": annotations, "categories": categories}
    write(root / "annotations" / "instances_val2017.json", told)


def test_coco_masks_an_object_and_names_its_class(tmp_path, clip, mapper):
    make_coco(tmp_path)
    data = read_coco(tmp_path)
    assert data.names == ("000000000001.jpg", "000000000002.jpg")  # the third fills its picture
    assert data.prompts == ("a photo of * and cat and dog", "a photo of * and dog")
    assert data.texts[0] == "a photo of cat and dog"
    first, second = (np.asarray(region()) for region in data.regions)
    whole = np.asarray(Image.open(data.paths[1]))
    assert first.shape == (6, 6, 3)
    np.testing.assert_array_equal(second, whole[:, 1:3])  # columns 1 and 2, by run lengths
    scored = evaluate_coco(clip, PREPARE, mapper, data, ks=(1, 2))
    assert scored.arms["composed"].query_to_target[2] == 1.0
    assert scored.arms["image"].target_to_query[2] == 1.0


def test_coco_paints_white_around_a_polygon(tmp_path):
    make_coco(tmp_path)
    region = read_coco(tmp_path).regions[0]
    wide = type(region)(region.path, (0, 0, 20, 10), region.shapes)
    painted = np.asarray(wide())
    assert (painted[:2] == 255).all()
    assert (painted[4, 4] != 255).any()


def test_coco_reads_the_authors_table_where_there_is_one(tmp_path):
    make_coco(tmp_path)
    picture(tmp_path / "val2017_masked" / "000000000002.jpg", 9, size=(20, 10))
    (tmp_path / "coco_eval.csv").write_text(
        "id,query_regions,query_class,classes\n000000000002.jpg,1.0;2.0;5.9;8.0 ,dog,cat;red\n"
    )
    data = read_coco(tmp_path)
    assert data.prompts == ("a photo of * and dog and cat and red",)
    assert data.regions[0]().size == (4, 6)
    for row in (
        "id,query_regions\nx,1;2;3;4\n",
        "id,query_regions,query_class,classes\nx,1;2,a,b\n",
    ):
        (tmp_path / "coco_eval.csv").write_text(row)
        with pytest.raises(UsageError, match="line 2, must have id, query_regions"):
            read_coco(tmp_path)


def test_coco_draws_objects_by_its_seed(tmp_path):
    make_coco(tmp_path)
    assert read_coco(tmp_path, seed=3) == read_coco(tmp_path, seed=3)


def make_imagenet_r(root):
    for i, kind in enumerate(("cartoon_0", "toy_1", "toy_2", "graffiti_3")):
        picture(root / "imagenet-r" / "n01" / f"{kind}.jpg", i)
    picture(root / "imagenet-r" / "n02" / "cartoon_0.jpg", 9)
    for i, wnid in enumerate(("n01", "n02", "n03")):
        picture(root / "real" / wnid / "val_1.JPEG", 20 + i)


def test_imagenet_r(tmp_path, clip, mapper):
    make_imagenet_r(tmp_path)
    data = read_imagenet_r(tmp_path)
    assert data.domains == ("cartoon", "toy", "toy", "cartoon")
    assert data.real_classes == ("n01", "n02")  # n03 has no drawing
    scored = evaluate_imagenet_r(clip, PREPARE, mapper, data, ks=(1, 6))
    assert set(scored.arms["composed"]) == {"cartoon", "toy", "average"}
    assert scored.arms["mixture"]["cartoon"][6] == 1.0
    assert scored.arms["mixture"]["toy"][6] == 0.5  # n02 has no toy and counts 0
    assert scored.arms["image"]["cartoon"][1] == 0.0  # the query's own picture stands first
    inside = read_imagenet_r(tmp_path / "imagenet-r", real=tmp_path / "real", domains=("toy",))
    assert len(inside.paths) == 2
    with pytest.raises(UsageError, match="name the folder of real pictures"):
        read_imagenet_r(tmp_path / "imagenet-r")
    with pytest.raises(UsageError, match=r"must hold CLASS/DOMAIN_NUMBER\.jpg"):
        read_imagenet_r(tmp_path / "real")


def test_text_baselines_of_the_tasks_differ(tmp_path, clip, mapper, monkeypatch):
    """Domain conversion takes the star out, Fashion-IQ keeps it, CIRR reads the caption alone."""
    seen = []

    def spy(clip, prompts, *, star):
        seen.append((prompts if isinstance(prompts, str) else prompts[0], star))
        return text_only(clip, prompts, star=star)

    monkeypatch.setattr("trialrun.representation.composed_protocols.text_only", spy)
    make_cirr(tmp_path / "cirr")
    evaluate_cirr(clip, PREPARE, mapper, read_cirr(tmp_path / "cirr"))
    make_imagenet_r(tmp_path / "r")
    evaluate_imagenet_r(clip, PREPARE, mapper, read_imagenet_r(tmp_path / "r"), domains=["toy"])
    assert seen == [("red", "removed"), ("a toy of *", "removed")]


PAIR = {"pairid": 1, "reference": "dev-0", "target_hard": "dev-1", "caption": "x"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "a list with at least one entry, got an empty list"),
        ({}, "a list with at least one entry, got a dict"),
        (None, "a list with at least one entry, got a NoneType"),
        ([1], "entry 0 must be an object with 'reference', got a int"),
        ([PAIR, {k: v for k, v in PAIR.items() if k != "target_hard"}],
         r"entry 1 must hold 'target_hard' \(str\)"),
        ([PAIR | {"caption": None}], "entry 0: 'caption' must be str, got 'None'"),
        ([PAIR | {"reference": ["a"]}], "entry 0: 'reference' must be str"),
        ([PAIR | {"pairid": True}], "entry 0: 'pairid' must be int"),
    ],
)  # fmt: skip
def test_a_list_of_another_form_is_one_sentence(tmp_path, entries, said):
    make_cirr(tmp_path)
    write(tmp_path / "captions" / "cap.rc2.val.json", entries)
    with pytest.raises(UsageError, match=said):
        read_cirr(tmp_path)


@pytest.mark.parametrize(
    ("names", "entries", "said"),
    [
        (5, [], "a list with at least one entry, got a int"),
        ([1], [], "must hold names of pictures"),
        (["a"], [], "got an empty list"),
        (["a"], [{"captions": None}], "'captions' must be list"),
        (["a"], [{"captions": ["x"]}], "two captions for each pair"),
        (["a"], [{"captions": ["x", 1]}], "two captions for each pair"),
    ],
)
def test_fashion_iq_of_another_form_is_one_sentence(tmp_path, names, entries, said):
    write(tmp_path / "image_splits" / "split.dress.val.json", names)
    told = [{"candidate": "a", "target": "a"} | entry for entry in entries]
    write(tmp_path / "captions" / "cap.dress.val.json", told)
    with pytest.raises(UsageError, match=said):
        read_fashion_iq(tmp_path, "dress")


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ("images", "width", None, "entry 0: 'width' must be int"),
        ("annotations", "bbox", [1, 2], "'bbox' must be four numbers"),
        ("annotations", "category_id", 7, "category_id 7 is in no category"),
        ("annotations", "segmentation", {"size": [1, 1]}, "must hold 'counts'"),
        ("categories", "name", 3, "'name' must be str"),
    ],
)
def test_coco_of_another_form_is_one_sentence(tmp_path, where, key, value, said):
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    told = json.loads(path.read_text())
    told[where][0][key] = value
    write(path, told)
    with pytest.raises(UsageError, match=said):
        read_coco(tmp_path)


def test_a_star_in_a_caption_is_no_picture(tmp_path, clip, mapper):
    make_cirr(tmp_path)
    told = tmp_path / "captions" / "cap.rc2.val.json"
    write(told, [PAIR | {"caption": "has a * on it"}])
    data = read_cirr(tmp_path)
    assert data.captions == ("has a * on it",)
    assert data.prompts == ("a photo of * , has a on it",)
    assert evaluate_cirr(clip, PREPARE, mapper, data, ks=(1,)).queries == 1


def test_ks_are_checked_before_pictures_are_encoded(tmp_path, clip, mapper, no_annotation_checks):
    make_cirr(tmp_path)
    for ks in ((), (0,), (1.5,)):
        with pytest.raises(ValueError, match="ks must be whole numbers from 1 on"):
            evaluate_cirr(clip, None, mapper, read_cirr(tmp_path), ks=ks)


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.int32, "tif")])
def test_grey_of_sixteen_bits_is_scaled(tmp_path, kind, suffix):
    grey = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(grey.astype(kind)).save(tmp_path / f"x.{suffix}")
    seen = np.asarray(open_picture(tmp_path / f"x.{suffix}"))
    np.testing.assert_allclose(seen[..., 0], grey / 257, atol=1)
    assert (seen[..., 0] == seen[..., 2]).all()


def test_pictures_whose_white_is_not_known_are_skipped_and_named(tmp_path, clip):
    picture(tmp_path / "good.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.warns(UserWarning, match="2 of 3"):
        done = embed_pictures(clip, PREPARE, find_pictures(tmp_path))
    assert [why.partition(",")[0] for _, why in done.skipped] == [
        "it holds floats", "it holds 70000 to 70000",
    ]  # fmt: skip


def test_any_error_of_a_reader_is_a_damaged_picture(tmp_path, monkeypatch):
    picture(tmp_path / "x.png")
    for error in (struct.error("unpack"), KeyError(1), IndexError(), TypeError("x")):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
        with pytest.raises(OSError):
            open_picture(tmp_path / "x.png")


def test_pictures_are_resized_and_cut_as_torchvision_does():
    sizes = {}

    class Spy:
        def __init__(self, size):
            self.size = size

        def convert(self, _):
            return self

        def resize(self, size, _):
            sizes["resized"] = size
            return Spy(size)

        def crop(self, box):
            sizes["cut"] = box
            return Image.new("RGB", (box[2] - box[0], box[3] - box[1]))

    for size, resized, corner in (
        ((100, 153), (224, 342), (0, 59)),
        ((333, 500), (224, 336), (0, 56)),
        ((640, 427), (335, 224), (56, 0)),  # 55.5 to the even number, as Python rounds
        ((1023, 767), (298, 224), (37, 0)),
    ):
        assert Preprocess(224)(Spy(size)).shape == (3, 224, 224)
        assert sizes["resized"] == resized
        assert sizes["cut"][:2] == corner


def test_a_sliver_takes_no_more_room_than_a_picture():
    assert Preprocess(64)(Image.new("RGB", (1, 60_000))).shape == (3, 64, 64)
    wide = Image.new("RGB", (400, 2), "white")
    wide.paste((0, 0, 0), (190, 0, 210, 2))
    assert float(PREPARE(wide).max()) < -0.5  # still the middle


def test_damaged_pictures_of_every_kind_are_skipped(tmp_path, clip):
    picture(tmp_path / "good.png")
    picture(tmp_path / "short.png", size=(64, 64))
    whole = (tmp_path / "short.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.gif").write_text("hello")
    picture(tmp_path / ".hidden" / "x.png")
    (tmp_path / "note.txt").write_text("no picture")
    paths = find_pictures(tmp_path)
    assert len(paths) == 4
    with pytest.warns(UserWarning, match="3 of 4 pictures"):
        done = embed_pictures(clip, PREPARE, paths)
    assert [paths[i].name for i in done.kept] == ["good.png"]
    assert {name.rpartition("/")[2] for name, _ in done.skipped} == {
        "empty.jpg", "short.png", "text.gif",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"none of 1 pictures could be read; the first: .*empty"):
        embed_pictures(clip, PREPARE, [tmp_path / "empty.jpg"])


def test_transparent_pictures_stand_on_white(tmp_path, clip):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    done = embed_pictures(clip, PREPARE, find_pictures(tmp_path))
    torch.testing.assert_close(done.features[0], done.features[1])


def test_preprocess_crops_or_squeezes():
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste((0, 0, 0), (10, 0, 30, 20))
    assert float(PREPARE(wide).max()) < -0.5  # the middle square is black
    squeezed = Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), mode="squash")(wide)
    assert float(squeezed[:, 4, 0].min()) > 0.9
