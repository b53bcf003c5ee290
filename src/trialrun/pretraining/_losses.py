"""Losses after pre-training: chat tokens, length-normalised preferences, group-relative policy.

Settings read in the released configuration of zhao2024moxin: preferences with beta 5 on log ratios
per token, policy steps with a KL weight of 0.001 and 8 samples a prompt. The formulas are those of
direct preference optimisation with each answer's log ratio divided by its length, and of group
relative policy optimisation with the k3 estimate of the KL term (both from memory); trl's
``sigmoid_norm``, ``grpo`` and ``bnpo`` are twins in the tests. Ours: refusing rows in which nothing
is trained, where a mean would silently be zero or not a number.
"""

from __future__ import annotations

from typing import NamedTuple

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_axes

IGNORED = -100
"""Label of a token that is not trained: prompts, other roles, padding."""
_FARTHEST = 20.0


class TokenLogps(NamedTuple):
    """Log-probability of each next token in nats (0 where ignored), and where it is trained."""

    logps: Float[Tensor, "batch targets"]
    trained: Bool[Tensor, "batch targets"]


class Preference(NamedTuple):
    """A preference loss in nats a pair, and the rewards behind it (detached)."""

    loss: Float[Tensor, ""]
    chosen_reward: Float[Tensor, " batch"]
    rejected_reward: Float[Tensor, " batch"]


class PolicyLoss(NamedTuple):
    """A policy loss, the mean KL estimate in nats a token, and the share of clipped tokens."""

    loss: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    clipped: Float[Tensor, ""]


def token_logps(
    logits: Float[Tensor, "batch time vocabulary"], labels: Int[Tensor, "batch time"]
) -> TokenLogps:
    """Return each label's log-probability given what stands before it.

    Parameters
    ----------
    logits : float tensor of shape (batch, time, vocabulary)
        What a causal model gives for ``input_ids``; half precision is raised to float32.
    labels : int tensor of shape (batch, time)
        The same places as ``input_ids``, -100 where not trained. The first is never predicted.

    Returns
    -------
    TokenLogps
        Shapes (batch, time - 1).

    Raises
    ------
    ValueError
        If shapes do not fit, there is no row, a row holds no trained token after its first, or
        a label is no token of the vocabulary.

    Examples
    --------
    >>> token_logps(torch.zeros(1, 2, 4), torch.tensor([[0, 3]])).logps
    tensor([[-1.3863]])
    """
    check_axes("logits", logits, ("batch", "time", "vocabulary"))
    if labels.shape != logits.shape[:2]:
        raise UsageError(
            f"labels must have the shape {tuple(logits.shape[:2])} of the logits, got "
            f"{tuple(labels.shape)}"
        )
    targets = labels[:, 1:]
    trained = targets != IGNORED
    _refuse_untrained(trained, "labels")
    wrong = targets[trained & ((targets < 0) | (targets >= logits.shape[2]))]
    if len(wrong):
        raise UsageError(
            f"labels must be in 0..{logits.shape[2] - 1}, or {IGNORED} where not trained, got "
            f"{int(wrong[0])}"
        )
    kept = logits[:, :-1]
    kept = kept if kept.dtype == torch.float64 else kept.float()
    picked = functional.cross_entropy(
        kept.transpose(1, 2), targets.long(), reduction="none", ignore_index=IGNORED
    )
    return TokenLogps(-picked, trained)


def sft_loss(
    logits: Float[Tensor, "batch time vocabulary"],
    labels: Int[Tensor, "batch time"],
    *,
    count: int | None = None,
) -> Float[Tensor, ""]:
    """Return the mean loss of the trained tokens, in nats per token (zhao2024moxin).

    Parameters
    ----------
    logits : float tensor of shape (batch, time, vocabulary)
    labels : int tensor of shape (batch, time)
        -100 where not trained; see `encode_chat`.
    count : int or None
        Divide the sum by this number of tokens: that of the whole batch, where it is spread over
        processes or pieces. None means the trained tokens given.

    Raises
    ------
    ValueError
        If a row holds no trained token, shapes do not fit, or ``count`` is below 1.

    Examples
    --------
    >>> sft_loss(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
    tensor(1.3863)
    """
    if count is not None and count < 1:
        raise UsageError(f"count must be at least 1 token, got {count}")
    found = token_logps(logits, labels)
    return -found.logps.sum() / (count if count is not None else found.trained.sum())


def answer_logps(
    logits: Float[Tensor, "batch time vocabulary"], labels: Int[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Return each row's mean log-probability of its trained tokens, in nats per token.

    Raises
    ------
    ValueError
        If a row holds no trained token, or shapes do not fit.

    Examples
    --------
    >>> answer_logps(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))
    tensor([-1.3863])
    """
    found = token_logps(logits, labels)
    return found.logps.sum(1) / found.trained.sum(1)


def dpo_loss(
    chosen: Float[Tensor, " batch"],
    rejected: Float[Tensor, " batch"],
    chosen_reference: Float[Tensor, " batch"],
    rejected_reference: Float[Tensor, " batch"],
    *,
    beta: float = 5.0,
) -> Preference:
    """Return the length-normalised preference loss (zhao2024moxin).

    -log sigmoid(beta [(log pi - log pi_ref)_w / |w| - (log pi - log pi_ref)_l / |l|]), the mean
    over pairs. Every argument is a mean log-probability per token from `answer_logps`, so that a
    long answer weighs no more than a short one; without that, beta 5 saturates.

    Parameters
    ----------
    chosen, rejected : float tensors of shape (batch,)
        Under the model that is trained, nats per token.
    chosen_reference, rejected_reference : float tensors of shape (batch,)
        Under the frozen reference; no gradient flows into them.
    beta : float
        Above 0.

    Returns
    -------
    Preference
        The loss, and beta times each answer's log ratio per token.

    Raises
    ------
    ValueError
        If shapes differ, there is no pair, or ``beta`` is not a positive number.

    Examples
    --------
    >>> level = torch.tensor([-1.0])
    >>> dpo_loss(level, level, level, level).loss
    tensor(0.6931)
    """
    check_axes("chosen", chosen, ("batch",))
    for name, other in (
        ("rejected", rejected),
        ("chosen_reference", chosen_reference),
        ("rejected_reference", rejected_reference),
    ):
        if other.shape != chosen.shape:
            raise UsageError(
                f"{name} must have the shape {tuple(chosen.shape)} of chosen, got "
                f"{tuple(other.shape)}"
            )
    if not len(chosen):
        raise UsageError("chosen must hold at least one pair, got none")
    if not 0 < beta < float("inf"):
        raise UsageError(f"beta must be a positive number, got {beta!r}")
    better = beta * (chosen - chosen_reference.detach())
    worse = beta * (rejected - rejected_reference.detach())
    return Preference(
        -functional.logsigmoid(better - worse).mean(), better.detach(), worse.detach()
    )


def group_advantages(
    rewards: Num[Tensor, "groups samples"], *, floor: float = 1e-4
) -> Float[Tensor, "groups samples"]:
    """Standardise rewards within each group of answers to one prompt (zhao2024moxin).

    Parameters
    ----------
    rewards : tensor of shape (groups, samples)
        At least 2 samples a group.
    floor : float
        Added to the standard deviation, which divides by samples - 1. A group whose answers all
        score alike gets zeros.

    Raises
    ------
    ValueError
        If a group holds fewer than 2 samples, a reward is not finite, or ``floor`` is negative.

    Examples
    --------
    >>> group_advantages(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), floor=0.0)
    tensor([[-0.7071,  0.7071],
            [ 0.0000,  0.0000]])
    """
    check_axes("rewards", rewards, ("groups", "samples"))
    if rewards.shape[1] < 2:
        raise UsageError(
            f"rewards must hold at least 2 samples a group to compare, got {rewards.shape[1]}"
        )
    if floor < 0:
        raise UsageError(f"floor must not be negative, got {floor!r}")
    rewards = rewards if rewards.dtype == torch.float64 else rewards.float()
    if not bool(torch.isfinite(rewards).all()):
        raise UsageError("rewards must be finite numbers, got nan or infinity")
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True)
    level = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(level, torch.zeros_like(centred), centred / (spread + floor))


def grpo_loss(
    logps: Float[Tensor, "batch targets"],
    old: Float[Tensor, "batch targets"],
    reference: Float[Tensor, "batch targets"] | None,
    advantages: Float[Tensor, " batch"],
    trained: Bool[Tensor, "batch targets"],
    *,
    clip: float = 0.2,
    kl: float = 0.001,
    mean: str = "sequences",
) -> PolicyLoss:
    """Return the clipped policy loss with a k3 KL term (zhao2024moxin).

    Per token: -min(r A, clip(r, 1 - clip, 1 + clip) A) + kl (e^d - d - 1), where r is the ratio
    of the policy to the one that sampled and d = log pi_ref - log pi. The KL term is the plain k3;
    trl multiplies it by r unless told not to. Ours: log r is held within -20..20, so that r stays
    finite (infinity times an advantage of 0 is not a number); beyond, r passes on no gradient.

    Parameters
    ----------
    logps, old : float tensors of shape (batch, targets)
        From `token_logps`, under the policy and under the one that sampled.
    reference : float tensor of shape (batch, targets), or None
        Under the frozen reference; None, which needs ``kl`` 0, leaves the KL term out.
    advantages : float tensor of shape (batch,)
        From `group_advantages`, flattened.
    trained : bool tensor of shape (batch, targets)
        The answers' tokens.
    clip : float in (0, 1)
    kl : float, 0 or above
    mean : str
        ``sequences``: each answer's mean over its tokens, then the mean over answers; ``tokens``:
        the mean over all tokens, under which long answers weigh more.

    Raises
    ------
    ValueError
        If shapes do not fit, there is no row, a row has no trained token, ``trained`` is not
        bool, or a setting is out of range.

    Examples
    --------
    >>> x = torch.zeros(1, 3)
    >>> grpo_loss(x, x, x, torch.ones(1), torch.ones(1, 3, dtype=torch.bool)).loss
    tensor(-1.)
    """
    check_axes("logps", logps, ("batch", "targets"))
    for name, other in (("old", old), ("reference", reference), ("trained", trained)):
        if other is not None and other.shape != logps.shape:
            raise UsageError(
                f"{name} must have the shape {tuple(logps.shape)} of logps, got "
                f"{tuple(other.shape)}"
            )
    if trained.dtype != torch.bool:
        raise UsageError(f"trained must be a bool tensor, got {trained.dtype}: use trained.bool()")
    if advantages.shape != logps.shape[:1]:
        raise UsageError(
            f"advantages must have shape ({len(logps)},), got {tuple(advantages.shape)}: flatten "
            f"the groups"
        )
    if not 0 < clip < 1:
        raise UsageError(f"clip must be in (0, 1), got {clip!r}")
    if not 0 <= kl < float("inf") or (reference is None and kl > 0):
        raise UsageError(f"kl must be 0 or above, and 0 without a reference, got {kl!r}")
    if mean not in ("sequences", "tokens"):
        raise UsageError(f"mean must be 'sequences' or 'tokens', got {mean!r}")
    _refuse_untrained(trained, "trained")

    gain = advantages.detach()[:, None]
    # Places that are not trained are taken out first: whatever stands there must not reach exp.
    ratio = torch.where(trained, logps - old.detach(), 0.0).clamp(-_FARTHEST, _FARTHEST).exp()
    near = ratio.clamp(1 - clip, 1 + clip)
    each = -torch.minimum(ratio * gain, near * gain)
    away = torch.zeros_like(logps)
    if reference is not None:
        gap = torch.where(trained, reference.detach() - logps, 0.0)
        away = torch.expm1(gap) - gap
        if kl > 0:
            each = each + kl * away
    bound = (near * gain < ratio * gain) & trained
    count = trained.sum()
    return PolicyLoss(
        _mean(each, trained, mean),
        torch.where(trained, away, 0.0).detach().sum() / count,
        bound.sum() / count,
    )


def _mean(each: Tensor, trained: Tensor, mean: str) -> Tensor:
    kept = torch.where(trained, each, 0.0)
    if mean == "tokens":
        return kept.sum() / trained.sum()
    return (kept.sum(1) / trained.sum(1)).mean()


def _refuse_untrained(trained: Tensor, name: str) -> None:
    if not len(trained):
        raise UsageError(f"{name} must hold at least one row, got none")
    empty = (~trained.any(1)).nonzero()
    if len(empty):
        raise UsageError(
            f"{name} must mark at least one token to train in every row, and row "
            f"{int(empty[0])} has none: drop such rows, or cut prompts instead of answers"
        )
