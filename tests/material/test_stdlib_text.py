"""The byte corpus from the interpreter's own library."""

from pathlib import Path

from trialrun.material.stdlib_text import _files, _is_held_out, load_stdlib_text


def test_no_file_is_in_both_parts_and_tests_are_in_none():
    text = load_stdlib_text()
    assert text.train_files > 5 * text.held_out_files > 50
    sample = text.held_out[1000:1200].tobytes()
    assert sample not in text.train.tobytes()
    assert b"\nclass TestCase(unittest" not in text.held_out.tobytes()


def test_the_split_depends_on_the_path_alone(tmp_path):
    for name in ("a.py", "pkg/b.py", "test/c.py", "encodings/d.py", "pkg/tests/e.py", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(name)
    assert [path.relative_to(tmp_path) for path in _files(tmp_path)] == [
        Path("a.py"),
        Path("pkg/b.py"),
    ]
    assert {_is_held_out(f"module{n}.py") for n in range(60)} == {False, True}
    assert sum(_is_held_out(f"module{n}.py") for n in range(1200)) in range(60, 140)


def test_source_names_the_interpreter_and_the_bytes():
    assert load_stdlib_text().source.startswith("Python 3.")
    assert "sha256" in load_stdlib_text().source
