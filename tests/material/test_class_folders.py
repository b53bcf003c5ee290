import numpy as np
import pytest
from PIL import Image

from trialrun.core.errors import UsageError
from trialrun.material.class_folders import read_class_folders


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (20, 12), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_folders_are_classes(folder):
    found = read_class_folders(folder, size=8)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (found.images[0] == (255, 0, 0)).all()
    assert found.said() == ""


def test_damaged_pictures_are_skipped_counted_and_named(folder):
    (folder / "cat" / "bad.png").write_bytes(b"\x89PNG nothing")
    raw = (folder / "dog" / "2.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(raw[: len(raw) // 2])
    (folder / "dog" / "notes.txt").write_text("no picture, not looked at")
    found = read_class_folders(folder, size=8)
    assert len(found.labels) == 6
    assert found.said().startswith("2 files could not be read as pictures and were skipped")
    assert found.skipped == ("cat/bad.png", "dog/cut.png")


def test_transparent_pictures_lie_on_white(folder):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "cat" / "clear.png")
    found = read_class_folders(folder, size=8)
    assert (found.images[found.files.index("cat/clear.png")] == 255).all()


def test_too_little_is_named(folder, tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        read_class_folders(folder / "none")
    with pytest.raises(UsageError, match="at least two classes, got 0"):
        read_class_folders(folder / "cat")
    with pytest.raises(UsageError, match=r"cat in .* must hold at least 4 pictures, got 3"):
        read_class_folders(folder, least=4)
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"at least 2 pictures, got 0 \(3 files could not be read"):
        read_class_folders(folder)
    assert np.array_equal(read_class_folders(folder, least=0, size=8).labels, [1, 1, 1])
