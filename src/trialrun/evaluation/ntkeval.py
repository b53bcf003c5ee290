"""NTKEval: what training on one skill does to another (guo2024ntkeval).

For skills s and s' the kernel's entry is the mean, over questions of s', of the change in the
probability of a right answer after a small training step on s; or, in context, after worked
examples of s stand before the question. The name is from the neural tangent kernel: one gradient
step changes the outputs on s' by -rate times the product of the gradients of s' and s.

What was read: the abstract and a digest of guo2024ntkeval. Its formulas and tables were not, and no
author code is known to us: the estimators are derived here (`_estimators.py`). The paper weighs
draws of the model before the step by importance. Ours, not theirs: the mixture of draws from both
models (veach1995mis), which is the default, the refusal of weights that a few draws carry, exact
sums, standard errors over prompts, the permutation test, the two-way split, and the first-order
prediction.

A right answer is an event of whole token sequences at temperature 1 with nothing truncated; the end
token, or the cut at ``max_new_tokens``, is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from trialrun.evaluation import _stack  # noqa: F401

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng, split
from trialrun.core.shapes import check_range
from trialrun.evaluation._encoding import Encoder, Ids, TokenPair, shown_prompts
from trialrun.evaluation._estimators import (
    ESS_FLOOR,
    ESTIMATORS,
    Draws,
    Estimate,
    MeanError,
    check_ess,
    check_name,
    estimate,
    needs_both,
    over_prompts,
)
from trialrun.evaluation._kernel import KernelResult, Specificity, TwoWay
from trialrun.evaluation._linear import LinearPrediction, directional_change
from trialrun.evaluation._passes import Answer, Reader, is_half
from trialrun.evaluation._skills import (
    Checker,
    Example,
    Skill,
    exact_match,
    is_right,
    read_skills,
)
from trialrun.evaluation._steps import (
    GradientStep,
    Lesson,
    LoRAStep,
    Train,
    answer_loss,
    left_untouched,
)

__all__ = [
    "ESS_FLOOR",
    "ESTIMATORS",
    "Draws",
    "Estimate",
    "Example",
    "GradientStep",
    "KernelResult",
    "Lesson",
    "LinearPrediction",
    "LoRAStep",
    "MeanError",
    "NTKEval",
    "RowDraws",
    "Skill",
    "Specificity",
    "TokenPair",
    "TwoWay",
    "answer_loss",
    "estimate",
    "exact_match",
    "left_untouched",
]

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
class _Drawn:
    """Answers to every question under one law, their correctness, and that law's log-p."""

    ids: list[list[Ids]]
    log_prob: Floats
    correct: NDArray[np.bool_]


class NTKEval:
    """Measure how training on one skill changes the right answers on another (guo2024ntkeval).

    The model is used where it is and left as it was, bit for bit, whatever a training function
    does. Dropout is off throughout; log-probabilities are in float32 at least.

    Parameters
    ----------
    model : transformers causal language model
        Any decoder that generates with a key-value cache.
    skills : mapping of name, or (name, format), to Skill or sequence of Example
        A plain sequence is split: its first half is trained on or shown, its second half asked.
    checker : callable
        ``checker(answer, example)`` gives True or False from the answer's text alone.
    samples : int, at least 1
        Answers drawn per question for each kernel entry, from both models together. Estimators
        that draw from both need 2.
    estimator : {"mixture", "importance", "self-normalised", "independent", "exact"}
        ``exact`` sums the probabilities of ``Example.right_answers`` and draws nothing; of each
        answer it counts the tokens that the tokenizer gives, not other spellings in tokens.
        ``importance`` and ``self-normalised`` refuse to answer where their effective sample size
        falls below 0.2 of the draws.
    tokenizer : transformers tokenizer
        With an end token; padding is masked, so a pad token is not needed.
    max_new_tokens : int, at least 1
        Longest answer, its end token included.
    batch_tokens : int, at least 1
        Token places given to the model at once.
    seed : int
        Fixes draws, shots and training.

    Raises
    ------
    ValueError
        If a setting is out of range, a skill is empty, the checker raises or gives anything but
        True or False, a prompt or answer does not fit, or the tokenizer has no end token.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({c: i for i, c in enumerate("01+=.")}, "."))
    >>> words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=1, eos_token_id=4)
    >>> model = GPT2LMHeadModel(config)
    >>> sums = [Example("0+1=", "1"), Example("1+0=", "1"), Example("0+0=", "0")] * 2
    >>> probe = NTKEval(model, {"add": sums, "same": sums[::-1]}, exact_match, 8,
    ...                 tokenizer=tokenizer, max_new_tokens=2)
    >>> kernel = probe.kernel(GradientStep(rate=0.1))
    >>> kernel.labels, kernel.mean.shape, kernel.estimator
    (('add', 'same'), (2, 2), 'mixture')
    """

    def __init__(
        self,
        model: Any,
        skills: Mapping[Any, Skill | Sequence[Example]],
        checker: Checker = exact_match,
        samples: int = 16,
        estimator: str = "mixture",
        *,
        tokenizer: Any,
        max_new_tokens: int = 16,
        batch_tokens: int = 4096,
        seed: int = 0,
    ) -> None:
        check_name(estimator)
        least = 2 if needs_both(estimator) else 1
        for name, value, low in (
            ("samples", samples, least),
            ("max_new_tokens", max_new_tokens, 1),
            ("batch_tokens", batch_tokens, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name} must be a whole number, got {value!r}")
            check_range(name, value, low=low)
        split(seed)
        if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_input_embeddings"):
            raise UsageError(
                f"model must be a transformers causal language model, got {type(model).__name__}"
            )
        if not callable(checker):
            raise UsageError(f"checker must be a function, got {checker!r}")
        self.model = model
        self.skills = read_skills(skills)
        self.checker = checker
        self.samples = samples
        self.estimator = estimator
        self.seed = seed
        self._encoder = Encoder(tokenizer, model, max_new_tokens)
        self._reader = Reader(model, self._encoder, batch_tokens)
        self._questions = [
            self._question(place, skill, example)
            for place, skill in enumerate(self.skills)
            for example in skill.test
        ]

    def _question(self, place: int, skill: Skill, example: Example) -> _Question:
        if self.estimator != "exact":
            return _Question(place, example, self._encoder.prompt(example.prompt, skill.label), ())
        pairs = [
            self._encoder.pair(example.prompt, right, skill.label)
            for right in example.right_answers
        ]
        answers = tuple(dict.fromkeys(pair.answer for pair in pairs))
        return _Question(place, example, pairs[0].prompt, answers)

    def kernel(self, train: Train | None = None) -> KernelResult:
        """Train on every skill in turn and measure the change on all of them.

        Parameters
        ----------
        train : callable or None
            ``train(model, lesson)`` changes the model in place, by its weights or by adapters;
            `LoRAStep` with its defaults where None. It is undone after each skill, also when it
            raises.

        Returns
        -------
        KernelResult
            Rows are trained on, columns asked.

        Raises
        ------
        ValueError
            If a weighting estimator's effective sample size is too small, or training left weights
            that give no finite probabilities.
        """
        step = LoRAStep() if train is None else train
        lessons = [self._lesson(skill) for skill in self.skills]
        prompts = [question.prompt for question in self._questions]

        def trained(place: int) -> Any:
            return self._trained(step, lessons[place])

        return self._measure("tuning", trained, [prompts] * len(self.skills))

    def kernel_icl(self, shots: int = 4, *, separator: str = "\n") -> KernelResult:
        """Show worked examples of every skill in turn and measure the change on all of them.

        Parameters
        ----------
        shots : int, at least 1
            Examples before each question, drawn anew for each from ``Skill.train``.
        separator : str
            Stands between examples, and before the question.

        Returns
        -------
        KernelResult
            Rows are shown, columns asked; the change is against no examples at all.

        Raises
        ------
        ValueError
            If there are fewer examples than shots, or a prompt grows too long.
        """
        check_range("shots", shots, low=1)
        told = [
            [
                self._encoder.prompt(text, asked.label)
                for asked in self.skills
                for text in shown_prompts(
                    asked, shown, shots=shots, separator=separator, seed=self.seed
                )
            ]
            for shown in self.skills
        ]
        return self._measure("in context", lambda _: nullcontext(), told)

    def draws(self, trained: str, train: Train | None = None) -> RowDraws:
        """Train on one skill and return the weighed draws themselves, for estimates of your own.

        Nothing is refused here; `estimate` takes them. Questions stand in the order of the skills.

        Parameters
        ----------
        trained : str
            Label of a skill.
        train : callable or None
            As in `kernel`.

        Raises
        ------
        ValueError
            If no skill has the label, or the estimator is ``exact``, which draws nothing.
        """
        if self.estimator == "exact":
            raise UsageError("draws needs an estimator that draws, got 'exact': use 'mixture'")
        skill = self._skill(trained)
        changed = self._trained(LoRAStep() if train is None else train, self._lesson(skill))
        prompts = [question.prompt for question in self._questions]
        return self._row(self.skills.index(skill), self._before(), changed, prompts)

    def linear(self, trained: str, asked: str, *, rate: float) -> LinearPrediction:
        """Predict the kernel's entry to first order, for one step of plain gradient descent.

        The derivative of the probability of a right answer along the step is taken forwards
        (jvp), without making the step: `kernel` with ``GradientStep(rate)`` approaches it as
        ``rate`` falls. With ``estimator="exact"`` right answers are enumerated, otherwise drawn.

        Parameters
        ----------
        trained, asked : str
            Labels of skills, ``name`` or ``name/format``.
        rate : float
            Learning rate of the step.

        Raises
        ------
        ValueError
            If no skill has the label.
        """
        taught, wanted = self._skill(trained), self._skill(asked)
        questions = [q for q in self._questions if self.skills[q.skill] is wanted]
        if self.estimator == "exact":
            answers = [list(q.right) for q in questions]
            correct = [np.ones(len(q.right)) for q in questions]
        else:
            drawn = self._draw([q.prompt for q in questions], questions, self.samples, "linear")
            answers, correct = drawn.ids, list(drawn.correct.astype(np.float64))
        pairs = [
            [TokenPair(q.prompt, ids) for ids in given] for q, given in zip(questions, answers)
        ]
        return directional_change(
            self.model,
            self._lesson(taught),
            pairs,
            correct,
            rate=rate,
            exact=self.estimator == "exact",
            batch_tokens=self._reader.batch_tokens,
        )

    def lesson(self, trained: str) -> Lesson:
        """Return what a training function is given for one skill.

        Parameters
        ----------
        trained : str
            Label of a skill.
        """
        return self._lesson(self._skill(trained))

    def right_before(self) -> Floats:
        """Return every question's exact probability of a right answer, before any change.

        Raises
        ------
        ValueError
            Unless the estimator is ``exact``.
        """
        if self.estimator != "exact":
            raise UsageError(f"right_before needs estimator='exact', got {self.estimator!r}")
        prompts = [question.prompt for question in self._questions]
        return self._sums(prompts, [list(question.right) for question in self._questions])

    def _skill(self, label: str) -> Skill:
        for skill in self.skills:
            if skill.label == label:
                return skill
        known = ", ".join(skill.label for skill in self.skills)
        raise UsageError(f"no skill is called {label!r}: choose one of {known}")

    def _lesson(self, skill: Skill) -> Lesson:
        pairs = tuple(self._encoder.pair(e.prompt, e.answer, skill.label) for e in skill.train)
        seed = split(self.seed, "train", skill.label)
        return Lesson(skill, pairs, seed, self._encoder.pad)

    @contextmanager
    def _trained(self, train: Train, lesson: Lesson) -> Iterator[None]:
        keeps = bool(getattr(train, "keeps_weights", False))
        with left_untouched(self.model, keeps_weights=keeps):
            torch.manual_seed(lesson.seed)
            train(self.model, lesson)
            yield

    def _measure(
        self, how: str, changed: Callable[[int], Any], after: Sequence[Sequence[Ids]]
    ) -> KernelResult:
        """Estimate every row: ``changed(row)`` changes the model, ``after[row]`` the prompts."""
        prompts = [question.prompt for question in self._questions]
        if self.estimator == "exact":
            rights = [list(question.right) for question in self._questions]
            base = self._sums(prompts, rights)
            rows = []
            for place in range(len(self.skills)):
                with changed(place):
                    rows.append(self._sums(after[place], rights) - base)
            return self._result(
                how, base, [[Estimate(r, 1.0) for r in self._parts(x)] for x in rows]
            )
        drawn = self._before()
        estimates = []
        for place in range(len(self.skills)):
            made = self._row(place, drawn, changed(place), after[place])
            estimates.append(self._estimates(place, made))
        return self._result(how, drawn.correct.mean(1), estimates)

    def _before(self) -> _Drawn:
        both = needs_both(self.estimator)
        count = self.samples - self.samples // 2 if both else self.samples
        prompts = [question.prompt for question in self._questions]
        return self._draw(prompts, self._questions, count, "before")

    def _row(self, place: int, drawn: _Drawn, changed: Any, after: Sequence[Ids]) -> RowDraws:
        """Score draws of the law before under the law after, and the other way round."""
        tuned = None
        with changed:
            base_after = self._score(after, drawn.ids)
            if needs_both(self.estimator):
                name = f"after {self.skills[place].label}"
                tuned = self._draw(after, self._questions, self.samples // 2, name)
        base = Draws(drawn.log_prob, base_after, drawn.correct)
        if tuned is None:
            return RowDraws(base, None)
        tuned_before = self._score([q.prompt for q in self._questions], tuned.ids)
        return RowDraws(base, Draws(tuned_before, tuned.log_prob, tuned.correct))

    def _estimates(self, place: int, made: RowDraws) -> list[Estimate]:
        found, (base, tuned) = [], made
        for asked, rows in enumerate(self._places()):
            part = Draws(base.before[rows], base.after[rows], base.correct[rows])
            other = tuned and Draws(tuned.before[rows], tuned.after[rows], tuned.correct[rows])
            cell = estimate(self.estimator, part, other)
            where = f"row {self.skills[place].label!r}, column {self.skills[asked].label!r}"
            check_ess(self.estimator, cell.ess, where)
            found.append(cell)
        return found

    def _places(self) -> list[NDArray[np.int64]]:
        owner = np.array([question.skill for question in self._questions])
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
    ) -> _Drawn:
        shape = (len(prompts), count, self._encoder.max_new_tokens)
        answers = self._reader.draw(prompts, rng(self.seed, "draws", stream).random(shape))
        ids = [[answer.ids for answer in given] for given in answers]
        log_prob = np.array([[answer.log_prob for answer in given] for given in answers])
        if is_half(self.model):
            # Passes of one token and of many differ by a percent in 16 bits: score both laws alike.
            log_prob = self._score(prompts, ids)
        return _Drawn(ids, _finite(log_prob), self._correct(answers, questions))

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
