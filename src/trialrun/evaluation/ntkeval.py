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

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from trialrun.evaluation import _stack  # noqa: F401

# isort: split
import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.evaluation._encoding import Encoder, TokenPair
from trialrun.evaluation._estimators import (
    ESS_FLOOR,
    ESTIMATORS,
    Draws,
    Estimate,
    MeanError,
    estimate,
)
from trialrun.evaluation._kernel import KernelResult, Specificity, TwoWay
from trialrun.evaluation._linear import LinearPrediction, directional_change
from trialrun.evaluation._measuring import Measuring, RowDraws
from trialrun.evaluation._settings import check_parts, check_rate, check_settings, check_whole
from trialrun.evaluation._skills import Checker, Example, Skill, exact_match, read_skills
from trialrun.evaluation._steps import (
    GradientStep,
    Lesson,
    LoRAStep,
    Train,
    answer_loss,
    left_untouched,
    step_of,
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
        falls below 0.2 of the draws, or their mean weight, which should be 1, below 0.2.
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
        check_settings(estimator, samples, max_new_tokens, batch_tokens, seed)
        check_parts(model, checker)
        self.model = model
        self.skills = read_skills(skills)
        self.checker = checker
        self.samples = samples
        self.estimator = estimator
        self.seed = seed
        self._batch_tokens = batch_tokens
        self._measuring = Measuring(
            model,
            self.skills,
            checker,
            Encoder(tokenizer, model, max_new_tokens),
            samples=samples,
            estimator=estimator,
            batch_tokens=batch_tokens,
            seed=seed,
        )

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
            If a weighting estimator's draws reach too little, training left weights that give no
            finite probabilities, or ``train`` returned another model.
        """
        step = step_of(train)
        lessons = [self._measuring.lesson(skill) for skill in self.skills]

        def trained(place: int) -> Any:
            return self._measuring.trained(step, lessons[place])

        prompts = self._measuring.prompts
        return self._measuring.measure("tuning", trained, [prompts] * len(self.skills))

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
        check_whole("shots", shots, low=1)
        told = self._measuring.told(shots, separator)
        return self._measuring.measure("in context", lambda _: nullcontext(), told)

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
        measuring, skill = self._measuring, self._measuring.skill(trained)
        changed = measuring.trained(step_of(train), measuring.lesson(skill))
        place = self.skills.index(skill)
        return measuring.row(place, measuring.before(), changed, measuring.prompts)

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
        check_rate(rate)
        taught = self._measuring.skill(trained)
        pairs, correct = self._measuring.judged(self._measuring.skill(asked))
        return directional_change(
            self.model,
            self._measuring.lesson(taught),
            pairs,
            correct,
            rate=rate,
            exact=self.estimator == "exact",
            batch_tokens=self._batch_tokens,
        )

    def lesson(self, trained: str) -> Lesson:
        """Return what a training function is given for one skill.

        Parameters
        ----------
        trained : str
            Label of a skill.
        """
        return self._measuring.lesson(self._measuring.skill(trained))

    def right_before(self) -> Floats:
        """Return every question's exact probability of a right answer, before any change.

        Raises
        ------
        ValueError
            Unless the estimator is ``exact``.
        """
        if self.estimator != "exact":
            raise UsageError(f"right_before needs estimator='exact', got {self.estimator!r}")
        return self._measuring.right_before()
