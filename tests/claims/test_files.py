"""Files written whole or not at all."""

import pytest

from trialrun.claims.files import write_whole


def test_a_place_that_cannot_be_written_is_named_as_the_user_wrote_it(tmp_path):
    (tmp_path / "taken").write_text("a file, no folder")
    target = tmp_path / "taken" / "report.html"
    with pytest.raises(OSError, match=r"taken/report\.html") as caught:
        write_whole(target, "x")
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
