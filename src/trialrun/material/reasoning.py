"""Questions with answers from reasoning-gym's generators, each in two surface formats.

``bare`` is the expression alone; ``question`` is the generator's own sentence with a place for the
answer. The same seed gives the same operands in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import split

FORMATS = ("bare", "question")


@dataclass(frozen=True)
class Problem:
    """One question with its answer.

    Attributes
    ----------
    skill, form : str
    prompt : str
        Ends where the answer begins.
    answer : str
        Begins with a space.
    """

    skill: str
    form: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class _Maker:
    generator: str
    settings: Mapping[str, Any]
    bare: Callable[[Mapping[str, Any]], str]
    wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True


_TWO = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def _expression(data: Mapping[str, Any]) -> str:
    return f"{data['expression']} ="


def _call(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda data: f"{name}({', '.join(map(str, data['numbers']))}) ="


MAKERS = {
    "add": _Maker("chain_sum", _TWO, _expression, lambda data: "+" in data["expression"]),
    "subtract": _Maker("chain_sum", _TWO, _expression, lambda data: "-" in data["expression"]),
    "multiply": _Maker("products", _TWO, _expression),
    "gcd": _Maker("gcd", {"max_value": 30}, _call("gcd")),
    "lcm": _Maker("lcm", {"max_value": 12}, _call("lcm")),
    "spell": _Maker(
        "spell_backward", {"max_word_len": 5}, lambda data: f"reverse({data['word']}) ="
    ),
}
SKILLS = tuple(MAKERS)
_TRIES = 40


def load_reasoning(skill: str, form: str, *, count: int, seed: int) -> tuple[Problem, ...]:
    """Return ``count`` different problems of a skill in a format.

    Parameters
    ----------
    skill : str
        One of `SKILLS`.
    form : {"bare", "question"}
    count : int
    seed : int

    Raises
    ------
    UsageError
        If the skill or format is unknown, or there are fewer different problems.
    MissingExtra
        Without reasoning-gym (the extra ``data``).

    Examples
    --------
    >>> one, two = (load_reasoning("add", form, count=1, seed=0)[0] for form in FORMATS)
    >>> one.answer == two.answer, one.prompt.endswith(" ="), two.prompt.endswith("Answer:")
    (True, True, True)
    """
    if skill not in MAKERS:
        raise UsageError(f"skill must be one of {', '.join(SKILLS)}, got {skill!r}")
    if form not in FORMATS:
        raise UsageError(f"form must be one of {', '.join(FORMATS)}, got {form!r}")
    if count < 1:
        raise UsageError(f"count must be at least 1 problem, got {count}")
    maker = MAKERS[skill]
    gym = need("reasoning_gym", extra="data")
    # The generators seed Python's own random from seed + place.
    start = split(seed, "reasoning", maker.generator) % 2**31
    made = gym.create_dataset(
        maker.generator, seed=start, size=_TRIES * count + 400, **maker.settings
    )
    found: dict[str, Problem] = {}
    for item in made:
        if len(found) == count:
            break
        bare = maker.bare(item["metadata"])
        if maker.wanted(item["metadata"]) and bare not in found:
            prompt = bare if form == "bare" else f"Question: {item['question']}\nAnswer:"
            found[bare] = Problem(skill, form, prompt, f" {item['answer']}")
    if len(found) < count:
        raise UsageError(
            f"there are only {len(found)} different problems of {skill!r} at this size, "
            f"got count={count}: ask for fewer"
        )
    return tuple(found.values())
