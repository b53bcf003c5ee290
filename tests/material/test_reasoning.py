import random

import pytest

from trialrun.core.errors import UsageError
from trialrun.material.reasoning import FORMATS, SKILLS, load_reasoning


@pytest.mark.parametrize("skill", SKILLS)
def test_both_formats_ask_the_same_in_other_words(skill):
    bare, question = (load_reasoning(skill, form, count=12, seed=1) for form in FORMATS)
    assert [p.answer for p in bare] == [p.answer for p in question]
    assert len({p.prompt for p in bare}) == len({p.prompt for p in question}) == 12
    assert all(p.prompt.endswith("=") and p.answer.startswith(" ") for p in bare)
    assert all(p.prompt.endswith("\nAnswer:") for p in question)


def test_answers_to_sums_are_right_and_signs_are_kept_apart():
    for skill, sign in (("add", "+"), ("subtract", "-")):
        for problem in load_reasoning(skill, "bare", count=30, seed=2):
            a, mark, b, _ = problem.prompt.split()
            assert mark == sign
            assert int(problem.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_the_seed_decides_and_global_state_is_left():
    before = random.getstate()
    first, again, other = (load_reasoning("gcd", "bare", count=9, seed=s) for s in (3, 3, 4))
    assert first == again != other
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"skill": "dance", "form": "bare", "count": 1}, "skill must be one of add"),
        ({"skill": "add", "form": "sung", "count": 1}, "form must be one of bare, question"),
        ({"skill": "add", "form": "bare", "count": 0}, "count must be at least 1 problem, got 0"),
        ({"skill": "add", "form": "bare", "count": 500}, "only .* different problems of 'add'"),
    ],
)
def test_bad_requests_get_one_sentence(given, message):
    with pytest.raises(UsageError, match=message):
        load_reasoning(**given, seed=0)
