"""Every example runs as a user would run it, and says what its text promises."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
PROMISED = {
    "d3g_pipeline.py": "accuracy at the unseen site: 0.9",
    "famnet_volumes.py": "drawn as a PNG of 320 x 384 pixels: True",
    "hippo_stream.py": "whole sequence and single steps agree: True",
    "flt_long_sequence.py": "the last step gives what the whole gives: True",
    "mbml_stream.py": "likeliest switch before symbol 15",
    "mcinfonce_credible.py": "more candidates than a clear one: True",
    "mla_convert.py": "nothing cut, nothing lost: True",
    "mla_decode.py": "the same tokens: True",
    "moxin_recipe.py": "went on at step 30 of 80, in phase long",
    "moxin_data.py": "reading test: 100.0% of 1 items found",
    "pic2word_search.py": "a contact sheet was drawn: True",
    "ntkeval_kernel.py": "the model is as it was, bit for bit: True",
    "ssl_interplay_diagnosis.py": "components alive at lambda 0.08: 2 of 6",
    "tcs_distill.py": "8 of 12 axes remain",
    "rerope_long_context.py": "after leaving, the same bits: True",
    "svasp_styles.py": "5-way 1-shot on new letters, light on dark: ",
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_example_does_what_it_says(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert PROMISED[path.name] in done.stdout
    assert list(tmp_path.iterdir()) == []
