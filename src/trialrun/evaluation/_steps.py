"""Training steps, and a guard that leaves a model as it was, bit for bit, whatever happened."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng, split
from trialrun.evaluation._encoding import TokenPair
from trialrun.evaluation._passes import at_rest, device_of, wide
from trialrun.evaluation._settings import check_rate, check_whole
from trialrun.evaluation._skills import Skill


@dataclass(frozen=True)
class Lesson:
    """What a training function is given besides the model.

    Attributes
    ----------
    skill : Skill
        ``skill.train`` holds the examples to train on.
    tokens : tuple of TokenPair
        The same examples as tokens; the answers include the end token.
    seed : int
        For whatever the function draws.
    pad : int
        A token to pad with.
    """

    skill: Skill
    tokens: tuple[TokenPair, ...]
    seed: int
    pad: int


Train = Callable[[Any, Lesson], Any]


def answer_loss(model: Any, pairs: Sequence[TokenPair], pad: int) -> Float[Tensor, ""]:
    """Return the mean over examples of -log p(answer | prompt), in nats, with its gradient.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> host = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1))
    >>> answer_loss(host, [TokenPair((0,), (1, 2))], pad=3).ndim
    0
    """
    return -pair_log_probs(model, pairs, pad).mean()


def pair_log_probs(model: Any, pairs: Sequence[TokenPair], pad: int) -> Float[Tensor, " pairs"]:
    """Return log p(answer | prompt) of every pair, (pairs,), with its gradient."""
    size = max(len(pair.prompt) + len(pair.answer) for pair in pairs)
    device = device_of(model)
    texts = [[*p.prompt, *p.answer] for p in pairs]
    ids = torch.tensor([t + [pad] * (size - len(t)) for t in texts], device=device)
    starts = torch.tensor([len(p.prompt) for p in pairs], device=device)[:, None]
    ends = torch.tensor([len(t) for t in texts], device=device)[:, None]
    place = torch.arange(1, size, device=device)
    # Padding stands behind each text, where a causal model does not look.
    mask = (torch.arange(size, device=device) < ends).long()
    logits = wide(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1])
    each = logits.gather(2, ids[:, 1:, None])[:, :, 0] - logits.logsumexp(2)
    return torch.where((place >= starts) & (place < ends), each, 0.0).sum(1)


def _descend(model: Any, weights: list[Tensor], lesson: Lesson, step: _Step) -> None:
    makers = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    settings: dict[str, Any] = {"lr": step.rate}
    if step.optimiser == "adamw":
        settings["weight_decay"] = 0.0
    optimiser = makers[step.optimiser](weights, **settings)
    size = min(step.batch or len(lesson.tokens), len(lesson.tokens))
    draw = rng(lesson.seed, "batches")
    with at_rest(model), torch.enable_grad():
        for _ in range(step.steps):
            chosen = sorted(draw.choice(len(lesson.tokens), size=size, replace=False))
            loss = answer_loss(model, [lesson.tokens[i] for i in chosen], lesson.pad)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients):
                weight.grad = gradient
            optimiser.step()


@dataclass(frozen=True)
class _Step:
    rate: float
    steps: int
    batch: int | None
    optimiser: str

    def _check(self) -> None:
        check_rate(self.rate)
        check_whole("steps", self.steps, low=0)
        if self.batch is not None:
            check_whole("batch", self.batch, low=1)
        if self.optimiser not in ("sgd", "adamw"):
            raise UsageError(f"optimiser must be sgd or adamw, got {self.optimiser!r}")


@dataclass(frozen=True)
class GradientStep(_Step):
    """Train all weights on a skill by its answers' loss; `NTKEval` undoes it afterwards.

    With one step of ``sgd`` on all examples this is the step that `NTKEval.linear` predicts.

    Parameters
    ----------
    rate : float, at least 0
        Learning rate.
    steps : int, at least 0
    batch : int or None
        Examples a step; None takes all.
    optimiser : {"sgd", "adamw"}

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> GradientStep(rate=1e-3)
    GradientStep(rate=0.001, steps=1, batch=None, optimiser='sgd')
    """

    steps: int = 1
    batch: int | None = None
    optimiser: str = "sgd"

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, model: Any, lesson: Lesson) -> None:
        """Train ``model`` in place on ``lesson``."""
        weights = [w for w in model.parameters() if w.requires_grad]
        if not weights:
            raise UsageError(
                "train: no weight of the model requires a gradient: call requires_grad_(True), or "
                "use LoRAStep, which brings its own weights"
            )
        _descend(model, weights, lesson, self)


@dataclass(frozen=True)
class LoRAStep(_Step):
    """Train low-rank adapters on a skill (hu2021lora, through peft); the weights stay frozen.

    The adapters sit on the very model that is measured, and are taken off afterwards, so no second
    copy of the model is made.

    Parameters
    ----------
    rate : float, at least 0
        Learning rate.
    steps : int, at least 0
    batch : int or None
        Examples a step; None takes all.
    optimiser : {"sgd", "adamw"}
    rank : int, at least 1
        Rank of the adapters; their scale is 2, whatever the rank.
    targets : str or tuple of str
        Names of the linear layers to adapt, as peft reads them.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> LoRAStep(steps=2).rank
    8
    """

    rate: float = 1e-3
    steps: int = 4
    batch: int | None = 16
    optimiser: str = "adamw"
    rank: int = 8
    targets: str | tuple[str, ...] = "all-linear"

    keeps_weights = True

    def __post_init__(self) -> None:
        self._check()
        check_whole("rank", self.rank, low=1)

    def __call__(self, model: Any, lesson: Lesson) -> None:
        """Put adapters into ``model`` and train them on ``lesson``."""
        peft = need("peft", extra="evaluation")
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0,
            target_modules=targets,
        )
        with torch.random.fork_rng(devices=_cuda_devices(model)), warnings.catch_warnings():
            # peft still asks the host for settings by names that transformers is giving up.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(split(lesson.seed, "adapters"))
            peft.get_peft_model(model, config)
        _descend(model, [w for w in model.parameters() if w.requires_grad], lesson, self)


def step_of(train: Train | None) -> Train:
    """Return a training function, checked; `LoRAStep` where None."""
    if train is not None and not callable(train):
        raise UsageError(f"train must be a function of model and lesson, got {train!r}")
    return LoRAStep() if train is None else train


def _cuda_devices(model: Any) -> list[torch.device]:
    return sorted({w.device for w in model.parameters() if w.is_cuda}, key=str)


_Saved = list[tuple[Any, dict[str, Any], dict[str, dict[Any, Any]]]]


def _shape_of(model: Any) -> _Saved:
    """Note every module's attributes, and what its dictionaries of parts and hooks hold."""
    objects = [*model.modules()]
    objects += [c for c in (getattr(model, n, None) for n in ("config", "generation_config")) if c]
    return [
        (o, dict(vars(o)), {k: dict(v) for k, v in vars(o).items() if isinstance(v, dict)})
        for o in objects
    ]


def _put_back(saved: _Saved) -> None:
    for thing, attributes, inside in saved:
        for name, content in inside.items():
            holder = attributes[name]
            holder.clear()
            holder.update(content)
        thing.__dict__.clear()
        thing.__dict__.update(attributes)


@contextmanager
def left_untouched(model: Any, *, keeps_weights: bool = False) -> Iterator[None]:
    """Undo on leaving whatever a block does to a model: weights, parts, flags, hooks, settings.

    The same module and parameter objects hold the same bits afterwards, also when the block
    raises. Torch's global generators are put back as well.

    Parameters
    ----------
    model : transformers model
    keeps_weights : bool
        The block promises not to write into the weights there are, as `LoRAStep` does; then they
        are not copied. Otherwise a copy lies in main memory for as long as the block runs.

    Examples
    --------
    >>> layer = torch.nn.Linear(1, 1)
    >>> before = layer.weight.item()
    >>> with left_untouched(layer):
    ...     _ = layer.weight.data.add_(1.0)
    >>> layer.weight.item() == before
    True
    """
    shape = _shape_of(model)
    tensors = [*model.parameters(), *model.buffers()]
    flags = [(t, t.data, t.requires_grad, t.grad) for t in tensors]
    copies = [] if keeps_weights else [t.detach().to("cpu", copy=True) for t in tensors]
    gradients = [None if t.grad is None else t.grad.clone() for t in tensors]
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            yield
    finally:
        _put_back(shape)
        with torch.no_grad():
            for (tensor, data, wanted, grad), gradient in zip(flags, gradients):
                tensor.data = data
                tensor.requires_grad_(wanted)
                if grad is not None and gradient is not None:
                    grad.copy_(gradient)
                tensor.grad = grad
            for tensor, copy in zip(tensors, copies):
                tensor.copy_(copy)
