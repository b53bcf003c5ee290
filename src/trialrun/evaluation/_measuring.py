"""The measuring half: answers are drawn and scored before and after a change, and make a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.evaluation._encoding import Encoder, Ids, TokenPair, shown_prompts
from trialrun.evaluation._estimators import (
    Draws,
    Estimate,
    check_ess,
    check_reach,
    estimate,
    needs_both,
    over_prompts,
)
from trialrun.evaluation._kernel import KernelResult
from trialrun.evaluation._passes import Answer, Reader, is_half
from trialrun.evaluation._settings import check_in_place
from trialrun.evaluation._skills import Checker, Example, Skill, is_right
from trialrun.evaluation._steps import Lesson, Train, left_untouched

Floats = NDArray[np.float64]


class RowDraws(NamedTuple):
    """Draws of the model before a change, and of the model after it where they were needed."""

    base: Draws
    tuned: Draws | None


@dataclass(frozen=True)
class _Question:
    skill: int
    example: Example
    prompt: Ids
    right: tuple[Ids, ...]


@dataclass(frozen=True)
class Drawn:
    """Answers to every question under one law, their correctness, and that law's log-p."""

    ids: list[list[Ids]]
    log_prob: Floats
    correct: NDArray[np.bool_]


class Measuring:
    """A model with its questions: how rows are drawn, scored and made into a kernel."""

    def __init__(
        self,
        model: Any,
        skills: Sequence[Skill],
        checker: Checker,
        encoder: Encoder,
        *,
        samples: int,
        estimator: str,
        batch_tokens: int,
        seed: int,
    ) -> None:
        self.model = model
        self.skills = skills
        self.checker = checker
        self.samples = samples
        self.estimator = estimator
        self.seed = seed
        self._encoder = encoder
        self._reader = Reader(model, encoder, batch_tokens)
        self.questions = [
            self._question(place, skill, example)
            for place, skill in enumerate(self.skills)
            for example in skill.test
        ]

    @property
    def prompts(self) -> list[Ids]:
        """Return every question's prompt, in the order of the skills."""
        return [question.prompt for question in self.questions]

    def _question(self, place: int, skill: Skill, example: Example) -> _Question:
        if self.estimator != "exact":
            return _Question(place, example, self._encoder.prompt(example.prompt, skill.label), ())
        pairs = [
            self._encoder.pair(example.prompt, right, skill.label)
            for right in example.right_answers
        ]
        ended = (ids for pair in pairs for ids in self._encoder.endings(pair))
        answers = tuple(dict.fromkeys(ended))
        return _Question(place, example, pairs[0].prompt, answers)

    def told(self, shots: int, separator: str) -> list[list[Ids]]:
        """Return, for every skill shown, every question's prompt after worked examples of it."""
        return [
            [
                self._encoder.prompt(text, asked.label)
                for asked in self.skills
                for text in shown_prompts(
                    asked, shown, shots=shots, separator=separator, seed=self.seed
                )
            ]
            for shown in self.skills
        ]

    def judged(self, asked: Skill) -> tuple[list[list[TokenPair]], list[Floats]]:
        """Return answers to a skill's questions and whether each is right, 1.0 or 0.0.

        They are all right answers where the estimator is ``exact``, and draws otherwise.
        """
        questions = [q for q in self.questions if self.skills[q.skill] is asked]
        if self.estimator == "exact":
            answers = [list(q.right) for q in questions]
            correct = [np.ones(len(q.right)) for q in questions]
        else:
            drawn = self._draw([q.prompt for q in questions], questions, self.samples, "linear")
            answers, correct = drawn.ids, list(drawn.correct.astype(np.float64))
        pairs = [
            [TokenPair(q.prompt, ids) for ids in given] for q, given in zip(questions, answers)
        ]
        return pairs, correct

    def right_before(self) -> Floats:
        """Return every question's exact probability of a right answer, before any change."""
        return self._sums(self.prompts, [list(question.right) for question in self.questions])

    def skill(self, label: str) -> Skill:
        """Return the skill of a label."""
        for skill in self.skills:
            if skill.label == label:
                return skill
        known = ", ".join(skill.label for skill in self.skills)
        raise UsageError(f"no skill is called {label!r}: choose one of {known}")

    def lesson(self, skill: Skill) -> Lesson:
        """Return what a training function is given for a skill."""
        pairs = tuple(self._encoder.pair(e.prompt, e.answer, skill.label) for e in skill.train)
        seed = split(self.seed, "train", skill.label)
        return Lesson(skill, pairs, seed, self._encoder.pad)

    @contextmanager
    def trained(self, train: Train, lesson: Lesson) -> Iterator[None]:
        """Train on a lesson, and undo it on leaving."""
        keeps = bool(getattr(train, "keeps_weights", False))
        with left_untouched(self.model, keeps_weights=keeps):
            torch.manual_seed(lesson.seed)
            check_in_place(self.model, train(self.model, lesson))
            yield

    def measure(
        self, how: str, changed: Callable[[int], Any], after: Sequence[Sequence[Ids]]
    ) -> KernelResult:
        """Estimate every row: ``changed(row)`` changes the model, ``after[row]`` the prompts."""
        if self.estimator == "exact":
            rights = [list(question.right) for question in self.questions]
            base = self._sums(self.prompts, rights)
            rows = []
            for place in range(len(self.skills)):
                with changed(place):
                    rows.append(self._sums(after[place], rights) - base)
            return self._result(
                how, base, [[Estimate(r, 1.0) for r in self._parts(x)] for x in rows]
            )
        drawn = self.before()
        estimates = []
        for place in range(len(self.skills)):
            made = self.row(place, drawn, changed(place), after[place])
            estimates.append(self._estimates(place, made))
        return self._result(how, drawn.correct.mean(1), estimates)

    def before(self) -> Drawn:
        """Draw answers of the model as it is."""
        both = needs_both(self.estimator)
        count = self.samples - self.samples // 2 if both else self.samples
        return self._draw(self.prompts, self.questions, count, "before")

    def row(self, place: int, drawn: Drawn, changed: Any, after: Sequence[Ids]) -> RowDraws:
        """Score draws of the law before under the law after, and the other way round."""
        tuned = None
        with changed:
            base_after = self._score(after, drawn.ids)
            if needs_both(self.estimator):
                name = f"after {self.skills[place].label}"
                tuned = self._draw(after, self.questions, self.samples // 2, name)
        base = Draws(drawn.log_prob, base_after, drawn.correct)
        if tuned is None:
            return RowDraws(base, None)
        tuned_before = self._score(self.prompts, tuned.ids)
        return RowDraws(base, Draws(tuned_before, tuned.log_prob, tuned.correct))

    def _estimates(self, place: int, made: RowDraws) -> list[Estimate]:
        found, (base, tuned) = [], made
        for asked, rows in enumerate(self._places()):
            part = Draws(base.before[rows], base.after[rows], base.correct[rows])
            other = tuned and Draws(tuned.before[rows], tuned.after[rows], tuned.correct[rows])
            cell = estimate(self.estimator, part, other)
            where = f"row {self.skills[place].label!r}, column {self.skills[asked].label!r}"
            check_ess(self.estimator, cell.ess, where)
            check_reach(self.estimator, part.ratio, where)
            found.append(cell)
        return found

    def _places(self) -> list[NDArray[np.int64]]:
        owner = np.array([question.skill for question in self.questions])
        return [np.flatnonzero(owner == place) for place in range(len(self.skills))]

    def _parts(self, each: Floats) -> list[Floats]:
        return [each[rows] for rows in self._places()]

    def _result(self, how: str, before: Floats, rows: list[list[Estimate]]) -> KernelResult:
        moments = [[over_prompts(cell.change) for cell in row] for row in rows]
        columns = range(len(self.skills))
        return KernelResult(
            labels=tuple(skill.label for skill in self.skills),
            factors=tuple((skill.name, skill.form) for skill in self.skills),
            how=how,
            estimator=self.estimator,
            before=np.array([float(part.mean()) for part in self._parts(before)]),
            mean=np.array([[cell.mean for cell in row] for row in moments]),
            se=np.array([[cell.se for cell in row] for row in moments]),
            ess=np.array([[cell.ess for cell in row] for row in rows]),
            changes=tuple(np.stack([row[j].change for row in rows]) for j in columns),
            draws=0 if self.estimator == "exact" else self.samples,
        )

    def _sums(self, prompts: Sequence[Ids], answers: list[list[Ids]]) -> Floats:
        scored = self._reader.score(prompts, answers)
        return _finite(np.array([float(np.exp(s).sum()) for s in scored]))

    def _score(self, prompts: Sequence[Ids], answers: list[list[Ids]]) -> Floats:
        return _finite(np.stack(self._reader.score(prompts, answers)))

    def _draw(
        self, prompts: Sequence[Ids], questions: Sequence[_Question], count: int, stream: str
    ) -> Drawn:
        shape = (len(prompts), count, self._encoder.max_new_tokens)
        answers = self._reader.draw(prompts, rng(self.seed, "draws", stream).random(shape))
        ids = [[answer.ids for answer in given] for given in answers]
        log_prob = np.array([[answer.log_prob for answer in given] for given in answers])
        if is_half(self.model):
            # Passes of one token and of many differ by a percent in 16 bits: score both laws alike.
            log_prob = self._score(prompts, ids)
        return Drawn(ids, _finite(log_prob), self._correct(answers, questions))

    def _correct(
        self, answers: list[tuple[Answer, ...]], questions: Sequence[_Question]
    ) -> NDArray[np.bool_]:
        found = []
        for given, question in zip(answers, questions):
            label = self.skills[question.skill].label
            judged = {
                ids: is_right(self.checker, self._encoder.text(ids), question.example, label)
                for ids in dict.fromkeys(answer.ids for answer in given)
            }
            found.append([judged[answer.ids] for answer in given])
        return np.array(found, dtype=bool)


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise UsageError(
            "the model must give finite probabilities, got infinite or undefined ones: lower the "
            "training step's rate, or load the model in a wider type"
        )
    return values
