"""Pictures on disk: folders, published layouts, lists, and files that cannot be read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trialrun.core.errors import UsageError
from trialrun.fewshot._svasp_picture_folder import read_picture
from trialrun.fewshot.svasp import (
    EpisodeSampler,
    PictureFolder,
    Pictures,
    StyleAttack,
    bscd_fsl,
    evaluate_episodes,
    fwt_list,
    mini_imagenet,
    picture_folder,
)


def _draw(folder, names, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.full((12, 9, 3), (40 * (i + start)) % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def test_corrupt_pictures_are_skipped_counted_and_named(tmp_path):
    for place, name in enumerate(("cat", "dog")):
        _draw(tmp_path / name, [f"{i}.png" for i in range(4)], place)
    (tmp_path / "cat" / "torn.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    (tmp_path / "dog" / "text.jpg").write_text("no picture")
    (tmp_path / "dog" / "notes.txt").write_text("not read at all")
    found = picture_folder(tmp_path, size=8)
    assert found.report() == (
        "8 pictures of 2 classes; 2 skipped that cannot be decoded (torn.png, text.jpg)"
    )
    x = found.take(np.array([7, 0]))
    assert x.shape == (2, 3, 8, 8)
    assert float(x[0, 0, 0, 0]) == pytest.approx(160 / 255, abs=1e-3)
    unchecked = picture_folder(tmp_path, size=8, check=False)
    with pytest.raises(UsageError, match=r"torn\.png cannot be decoded"):
        unchecked.take(np.arange(len(unchecked)))
    score = evaluate_episodes(nn.Flatten(), found, way=2, shot=1, query=2, episodes=3)
    assert 0 <= score.acc <= 100


def test_folders_that_cannot_serve_are_refused_in_one_sentence(tmp_path):
    _draw(tmp_path / "only", ["a.png", "b.png"])
    with pytest.raises(UsageError, match=r"at least two classes are needed, got 1 \(only\)"):
        picture_folder(tmp_path)
    _draw(tmp_path / "more", ["a.png"])
    found = picture_folder(tmp_path)
    with pytest.raises(ValueError, match="at least 5 classes for episodes of 5, got 2"):
        EpisodeSampler(found.labels)
    with pytest.raises(ValueError, match="but class more has 1"):
        EpisodeSampler(found.labels, way=2, shot=1, query=1, names=found.class_names)
    _draw(tmp_path / "third", ["a.png", "b.png"])
    assert list(picture_folder(tmp_path).with_at_least(2).class_names) == ["only", "third"]


def test_mini_imagenet_is_read_in_both_layouts(tmp_path):
    for name in ("n01", "n02"):
        _draw(tmp_path / "a" / "train" / name, ["1.jpg", "2.jpg"])
    assert len(mini_imagenet(tmp_path / "a", size=8)) == 4
    _draw(tmp_path / "b" / "images", ["x1.jpg", "x2.jpg", "y1.jpg"])
    (tmp_path / "b" / "val.csv").write_text("filename,label\nx1.jpg,n1\nx2.jpg,n1\ny1.jpg,n2\n")
    found = mini_imagenet(tmp_path / "b", "val", size=8)
    assert found.labels.tolist() == [0, 0, 1]
    with pytest.raises(UsageError, match=r"test\.csv is missing"):
        mini_imagenet(tmp_path / "b", "test")
    (tmp_path / "b" / "test.csv").write_text("file\n")
    with pytest.raises(UsageError, match="must have the column filename, label"):
        mini_imagenet(tmp_path / "b", "test")


def test_the_four_bscd_sets_are_read_by_their_layout(tmp_path):
    for name in ("Forest", "River"):
        _draw(tmp_path / "eurosat" / "2750" / name, ["1.jpg"])
        _draw(tmp_path / "plants" / "dataset" / "train" / name, ["1.jpg", "2.jpg"])
    assert len(bscd_fsl(tmp_path / "eurosat", "eurosat", size=8)) == 2
    assert len(bscd_fsl(tmp_path / "plants", "cropdisease", size=8)) == 4
    _draw(tmp_path / "isic" / "input", ["I1.jpg", "I2.jpg"])
    table = "image,MEL,NV\nI1,1.0,0.0\nI2,0.0,1.0\n"
    (tmp_path / "isic" / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(table)
    assert list(bscd_fsl(tmp_path / "isic", "isic", size=8).class_names) == ["MEL", "NV"]
    _draw(tmp_path / "chest" / "images", ["1.png", "2.png", "3.png", "4.png"])
    rows = ["1.png,Mass", "2.png,Nodule", "3.png,Mass|Nodule", "4.png,No Finding"]
    text = "\n".join(["Image Index,Finding Labels", *rows])
    (tmp_path / "chest" / "Data_Entry_2017.csv").write_text(text)
    found = bscd_fsl(tmp_path / "chest", "chestx", size=8)
    assert (len(found), list(found.class_names)) == (2, ["Mass", "Nodule"])
    (tmp_path / "chest" / "images" / "1.png").unlink()
    with pytest.raises(UsageError, match=r"1 missing, .*1\.png for one"):
        bscd_fsl(tmp_path / "chest", "chestx", size=8)


def test_a_list_made_on_another_machine_is_found_under_a_new_root(tmp_path):
    for name in ("wren", "crow"):
        _draw(tmp_path / "images" / name, ["1.jpg"])
    table = {
        "label_names": ["wren", "crow", "unused"],
        "image_names": ["/home/them/CUB/images/wren/1.jpg", "/home/them/CUB/images/crow/1.jpg"],
        "image_labels": [0, 1],
    }
    file = tmp_path / "novel.json"
    file.write_text(json.dumps(table))
    found = fwt_list(file, root=tmp_path, size=8)
    assert list(found.class_names) == ["crow", "wren"]
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(UsageError, match="2 missing"):
        fwt_list(file, size=8)
    file.write_text(json.dumps({**table, "image_labels": [0]}))
    with pytest.raises(UsageError, match="one label per picture, got 2 pictures and 1 labels"):
        fwt_list(file)


def test_deep_and_see_through_pictures_keep_what_is_seen(tmp_path):
    levels = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    found = read_picture(tmp_path / "deep.png", 16)
    assert np.abs(found[..., 0] - levels / 257).max() <= 1
    drawn = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (4, 4, 12, 12))
    drawn.save(tmp_path / "clear.png")
    seen = read_picture(tmp_path / "clear.png", 16)
    assert (seen[0] == 255).all()
    assert (seen[8, 8] == 0).all()
    with pytest.raises(UsageError, match=r"none\.png is missing"):
        read_picture(tmp_path / "none.png", 8)


def test_classes_of_one_name_stay_apart_and_bad_tables_are_named(tmp_path):
    for name in ("a", "b"):
        _draw(tmp_path / name, ["0.png"])
    (tmp_path / "l.json").write_text(json.dumps({
        "image_names": ["a/0.png", "b/0.png"], "image_labels": [0, 1], "label_names": ["x", "x"],
    }))  # fmt: skip
    found = fwt_list(tmp_path / "l.json", root=tmp_path, size=8)
    assert (found.labels.tolist(), list(found.class_names)) == ([0, 1], ["x", "x"])
    table = tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv"
    table.write_text("image,MEL,NV\nz,yes,0\n")
    with pytest.raises(UsageError, match="numbers for every class, but the row of z does not"):
        bscd_fsl(tmp_path, "isic")
    with pytest.raises(UsageError, match="labels must be one per path, 2, got 3"):
        PictureFolder(found.paths, np.array([0, 1, 1]), ["a", "b"])
    with pytest.raises(UsageError, match="places in class_names, 0 to 1, got 0 to 2"):
        PictureFolder(found.paths, np.array([0, 2]), ["a", "b"])
    with pytest.raises(ValueError, match="class x has 1"):
        evaluate_episodes(nn.Flatten(), found, way=2, query=1)


def test_pictures_go_into_a_loader_and_folders_print_in_a_line(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(9):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    found = picture_folder(tmp_path, size=8)
    for source in (found, Pictures(found.take(np.arange(18)), found.labels)):
        x, y = next(iter(torch.utils.data.DataLoader(source, batch_size=18)))
        assert torch.equal(x, found.take(np.arange(18)))
        assert y.tolist() == found.labels.tolist()
        assert torch.equal(source[-1][0], x[-1])
        with pytest.raises(IndexError):
            source[18]
    assert repr(found) == "PictureFolder(18 pictures of 2 classes, 8 px)"
    assert repr(StyleAttack(stages=("layer1",))).startswith("StyleAttack(stages=('layer1',), eps=")


def test_a_list_is_not_read_from_the_folder_of_one_of_its_classes(tmp_path):
    for name in ("c0", "c1"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    names = [f"/far/{name}/{i}.png" for name in ("c0", "c1") for i in range(2)]
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"image_names": names, "image_labels": [0, 0, 1, 1]}))
    assert len(fwt_list(file, root=tmp_path, size=8)) == 4
    with pytest.raises(UsageError, match=r"c0 is the folder of some of them: give .*"):
        fwt_list(file, root=tmp_path / "c0", size=8)
