"""Skills and their examples, and the checking of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trialrun.core.errors import UsageError


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Parameters
    ----------
    prompt : str
        What the model reads, up to where its answer begins.
    answer : str
        A right answer; it is trained on, and shown in context.
    answers : tuple of str
        All right answers, where they are finite: what ``estimator="exact"`` sums over. Empty means
        that ``answer`` is the only one.
    data : mapping
        Whatever the checker needs besides.

    Raises
    ------
    ValueError
        If a prompt or an answer is not text, or ``answers`` is one text.
    """

    prompt: str
    answer: str
    answers: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("answer", self.answer)):
            if not isinstance(value, str):
                raise UsageError(f"Example: {name} must be text, got {value!r}: wrap it in str()")
        plain = isinstance(self.answers, str) or not isinstance(self.answers, Sequence)
        if plain or not all(isinstance(right, str) for right in self.answers):
            raise UsageError(f"Example: answers must be a tuple of texts, got {self.answers!r}")

    @property
    def right_answers(self) -> tuple[str, ...]:
        """Return all right answers, each once."""
        return tuple(dict.fromkeys(self.answers or (self.answer,)))


@dataclass(frozen=True)
class Skill:
    """Examples of one skill: some to train on or to show, others to ask.

    Parameters
    ----------
    name : str
    train : sequence of Example
        Trained on by `NTKEval.kernel` and shown by `NTKEval.kernel_icl`.
    test : sequence of Example
        Asked; the change is averaged over these.
    form : str
        The surface format, where skills come in several.
    """

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    form: str = ""

    @property
    def label(self) -> str:
        """Return name and format as one word."""
        return f"{self.name}/{self.form}" if self.form else self.name


Checker = Callable[[str, Example], bool]
Key = str | tuple[str, str]


def exact_match(answer: str, example: Example) -> bool:
    """Tell whether an answer is one of the right ones, white space at its ends aside.

    Parameters
    ----------
    answer : str
        What the model wrote.
    example : Example
        The question it was asked.

    Examples
    --------
    >>> exact_match(" 7", Example("3 + 4 =", " 7")), exact_match("77", Example("3 + 4 =", " 7"))
    (True, False)
    """
    return answer.strip() in {right.strip() for right in example.right_answers}


def _skill(key: Key, given: Any) -> Skill:
    name, form = key if isinstance(key, tuple) else (key, "")
    if isinstance(given, Skill):
        for part in (given.train, given.test):
            if isinstance(part, str | bytes) or not isinstance(part, Sequence):
                raise UsageError(
                    f"skills[{key!r}]: train and test must be sequences of Example, got "
                    f"{type(part).__name__}"
                )
        return Skill(name, tuple(given.train), tuple(given.test), form or given.form)
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise UsageError(
            f"skills[{key!r}] must be a Skill or a sequence of Example, got {type(given).__name__}"
        )
    half = len(given) // 2
    return Skill(name, tuple(given[:half]), tuple(given[half:]), form)


def _check_examples(label: str, part: str, examples: Sequence[Any], least: int) -> None:
    for example in examples:
        if not isinstance(example, Example):
            raise UsageError(
                f"skill {label!r}: {part} must hold Example, got {type(example).__name__}"
            )
    if len(examples) < least:
        raise UsageError(
            f"skill {label!r} must have at least {least} {part} examples, got {len(examples)}: "
            f"give more, or leave the skill out"
        )


def read_skills(skills: Any) -> tuple[Skill, ...]:
    """Return the skills of a mapping, checked; a plain sequence is split into two halves.

    Raises
    ------
    UsageError
        If there is no skill, or one has no training or fewer than two test examples.

    Examples
    --------
    >>> made = read_skills({"add": [Example(f"1 + {n} =", f" {1 + n}") for n in range(4)]})
    >>> len(made[0].train), len(made[0].test)
    (2, 2)
    """
    if not isinstance(skills, Mapping) or not skills:
        got = "an empty mapping" if isinstance(skills, Mapping) else type(skills).__name__
        raise UsageError(f"skills must map names to examples, got {got}")
    for key in skills:
        pair = isinstance(key, tuple) and len(key) == 2 and all(isinstance(k, str) for k in key)
        if not (isinstance(key, str) or pair):
            raise UsageError(f"skills: a key must be a name or (name, format), got {key!r}")
    read = tuple(_skill(key, given) for key, given in skills.items())
    for skill in read:
        _check_examples(skill.label, "training", skill.train, 1)
        # With one prompt there is no spread between prompts, and so no standard error.
        _check_examples(skill.label, "test", skill.test, 2)
    labels = [skill.label for skill in read]
    if len(set(labels)) != len(labels):
        raise UsageError(f"skills must differ in name or format, got {', '.join(labels)}")
    return read


def is_right(checker: Checker, answer: str, example: Example, label: str) -> bool:
    """Ask the user's checker, and say plainly what is wrong with it where something is.

    Raises
    ------
    UsageError
        If it raises, or returns anything but True or False.
    """
    try:
        found = checker(answer, example)
    except Exception as error:
        raise UsageError(
            f"checker must judge any text, and raised {type(error).__name__} ({error}) on the "
            f"answer {answer[:40]!r} to skill {label!r}: return False for what it cannot read"
        ) from error
    if not isinstance(found, bool | np.bool_):
        raise UsageError(
            f"checker must return True or False, got {found!r} for the answer {answer[:40]!r} to "
            f"skill {label!r}: compare a score with a threshold"
        )
    return bool(found)
