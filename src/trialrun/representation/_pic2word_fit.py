"""Train the mapper on pictures alone (saito2023pic2word).

Each picture's pseudo-word is inserted at the end of "a photo of"; the sentence's embedding must
then pick its own picture out of the batch, and the picture its own sentence (symmetric InfoNCE at
CLIP's frozen temperature). CLIP stays in eval; gradients flow through its text tower to the mapper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.representation._pic2word_clip import Clip, as_clip
from trialrun.representation._pic2word_compose import unit
from trialrun.representation._pic2word_pictures import embed_batches

_WARMUP = 10_000
_OBJECTIVES = ("contrastive", "mse")


@dataclass(frozen=True, kw_only=True)
class WordTraining:
    """How the mapper is trained; the defaults are the paper's for ViT but for two.

    Parameters
    ----------
    epochs : int
        Passes over the embeddings.
    batch_size : int
        Pictures in a batch, all of them one another's negatives (the paper: 128 on each of 8).
    lr : float
        Highest learning rate.
    weight_decay : float
        AdamW's, on matrices; none on biases.
    warmup : int, optional
        Steps of linear warm-up before the cosine. The paper's 10,000 where that is at most a tenth
        of all steps, and a tenth otherwise, which is ours.
    betas, eps : AdamW's
    objective : {"contrastive", "mse"}
        ``mse`` pulls the two unit vectors together with no negatives: a rival, not the paper.
    bfloat16 : bool
        Run the towers in bfloat16 (the paper trains in mixed precision).

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    epochs: int = 30
    batch_size: int = 1024
    lr: int | float = 1e-4
    weight_decay: int | float = 0.1
    warmup: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    objective: str = "contrastive"
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, low=1)
        check_range("batch_size", self.batch_size, low=2)
        check_range("lr", self.lr, low=0)
        check_range("weight_decay", self.weight_decay, low=0)
        if self.warmup is not None:
            check_range("warmup", self.warmup, low=0)
        if self.objective not in _OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(_OBJECTIVES)}, got {self.objective!r}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` out of ``steps``."""
        warmup = min(_WARMUP, steps // 10) if self.warmup is None else self.warmup
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class WordFit(NamedTuple):
    """What training left behind."""

    losses: Tensor
    """Loss of every step, in nats (or squared distance for ``mse``)."""
    steps: int
    pictures: int
    resumed_at: int
    """Step at which this call went on; 0 for a fresh start."""


def symmetric_infonce(
    left: Float[Tensor, "batch embed"], right: Float[Tensor, "batch embed"], scale: int | float
) -> Float[Tensor, ""]:
    """Return the mean of the cross-entropies of finding each row's partner, both ways, in nats.

    Parameters
    ----------
    left, right : Tensor (batch, embed)
        Unit vectors; rows of the same number belong together.
    scale : float
        Factor on cosines (1 / temperature).

    Examples
    --------
    >>> rows = torch.eye(4)
    >>> bool(symmetric_infonce(rows, rows, 100.0) < 1e-6)
    True
    """
    if left.shape != right.shape:
        raise ValueError(
            f"left and right must agree in shape, got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    logits = scale * left @ right.T
    own = torch.arange(len(left), device=left.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _features_of(clip: Clip, images: Tensor | Iterable[Any]) -> Tensor:
    features = images if isinstance(images, Tensor) else embed_batches(clip, images)
    if features.ndim != 2 or features.shape[1] != clip.embed_dim:
        raise ValueError(
            f"images must be a loader or embeddings of shape (pictures, {clip.embed_dim}), "
            f"got {tuple(features.shape)}"
        )
    if len(features) < 2:
        raise ValueError(f"at least 2 pictures are needed to tell apart, got {len(features)}")
    bad = (~torch.isfinite(features).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(
            f"embeddings must be finite, got {len(bad)} that are not, the first at row "
            f"{int(bad[0])}: encode those pictures in float32 or leave them out"
        )
    return features.to(clip.device)


class _Run:
    """One training run: optimiser, order of pictures and, if asked for, a checkpoint."""

    def __init__(self, mapper: nn.Module, training: WordTraining, n: int, seed: int) -> None:
        self.mapper, self.training, self.n, self.seed = mapper, training, n, seed
        self.batch = min(training.batch_size, n)
        self.per_epoch = n // self.batch
        self.steps = training.epochs * self.per_epoch
        matrices = [w for w in mapper.parameters() if w.ndim > 1]
        biases = [w for w in mapper.parameters() if w.ndim <= 1]
        self.weights = [*matrices, *biases]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": float(training.weight_decay)},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=float(training.lr),
            betas=training.betas,
            eps=training.eps,
            fused=True,
        )
        self._order = torch.empty(0, dtype=torch.long)
        self._epoch = -1

    def rows(self, step: int) -> Tensor:
        """Return the pictures of one step; each epoch has an order of its own."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(split(self.seed, "order", epoch))
            self._order, self._epoch = torch.randperm(self.n, generator=generator), epoch
        return self._order[place * self.batch : (place + 1) * self.batch]

    def update(self, loss: Tensor, step: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.rate(step, self.steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def _told(self, prompt: str) -> str:
        told = asdict(self.training) | {"n": self.n, "seed": self.seed, "prompt": prompt}
        return json.dumps(told, sort_keys=True)

    def save(self, path: Path, prompt: str, step: int, losses: list[float]) -> None:
        """Write weights, AdamW's state and the step in one move."""
        tensors = {f"weight.{k}": v for k, v in self.mapper.state_dict().items()}
        for i, weight in enumerate(self.weights):
            held = self.optimiser.state[weight]
            tensors |= {f"adam.{i}.{name}": value for name, value in held.items()}
        tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(plain, beside, metadata={"step": str(step), "run": self._told(prompt)})
        beside.replace(path)

    def resume(self, path: Path, prompt: str) -> list[float]:
        """Take up what `save` left; return the losses so far."""
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UsageError(f"{path} is damaged, delete it to begin anew: {error}") from error
        if told.get("run") != self._told(prompt):
            raise UsageError(
                f"{path} belongs to a run with other settings, prompt, seed or number of pictures: "
                "name another checkpoint or delete this one"
            )
        named = {k.removeprefix("weight."): v for k, v in tensors.items() if "weight." in k[:7]}
        self.mapper.load_state_dict(named)
        for i, weight in enumerate(self.weights):
            prefix = f"adam.{i}."
            self.optimiser.state[weight] = {
                k.removeprefix(prefix): v if k.endswith(".step") else v.to(weight.device)
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
        return tensors["losses"].tolist()


def fit_image_to_word(
    mapper: nn.Module,
    clip: Any,
    images: Any,
    *,
    prompt: str = "a photo of",
    tokenizer: Any = None,
    training: WordTraining | None = None,
    targets: Float[Tensor, "pictures embed"] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int = 1000,
    seed: int = 0,
) -> WordFit:
    """Train a mapper so that its words stand for their pictures (saito2023pic2word).

    Parameters
    ----------
    mapper : ImageToWord
        Trained in place and left in eval mode, on the model's device.
    clip : Clip or torch.nn.Module
        See `as_clip`; it comes out as it went in.
    images : Tensor or iterable
        Embeddings (pictures, embed) that were encoded before, not normalised; or a loader of
        pre-processed pictures, which is encoded in one pass.
    prompt : str
        Sentence at whose end the word is inserted; no ``*`` in it.
    tokenizer : callable, optional
        For a bare model.
    training : WordTraining, optional
    targets : Tensor (pictures, embed), optional
        Embeddings that the sentences must find, where they are not the pictures' own.
    checkpoint : path, optional
        A safetensors file written every ``save_every`` steps and at the end. If it is there and of
        the same run, training goes on from it and ends with the same bits.
    save_every : int, at least 1
        In steps.
    seed : int
        Seed of the order of pictures and of dropout.

    Returns
    -------
    WordFit

    Raises
    ------
    ValueError
        If the prompt holds a ``*`` or fills the context, or embeddings have another width, are
        fewer than two or not finite.

    Examples
    --------
    >>> from trialrun.representation.pic2word import ImageToWord
    >>> from trialrun.representation.tiny_clip import TinyClip, WordTokenizer
    >>> tok = WordTokenizer(("a", "photo", "of"))
    >>> clip = TinyClip(tok.vocab_size)
    >>> mapper = ImageToWord(clip.embed_dim, clip.text_width, hidden=8)
    >>> fit = fit_image_to_word(mapper, clip, torch.randn(6, clip.embed_dim), tokenizer=tok,
    ...     training=WordTraining(epochs=2, batch_size=3))
    >>> fit.steps, len(fit.losses)
    (4, 4)
    """
    clip, training = as_clip(clip, tokenizer), training or WordTraining()
    check_range("save_every", save_every, low=1)
    if "*" in prompt:
        raise ValueError(
            f"the training prompt takes its word at the end and no '*', got {prompt!r}"
        )
    features = _features_of(clip, images)
    if targets is not None and targets.shape != features.shape:
        raise ValueError(
            f"targets must have shape {tuple(features.shape)}, got {tuple(targets.shape)}"
        )
    wanted = unit(features if targets is None else targets.to(clip.device))
    mapper.to(clip.device).train()
    dtype = next(mapper.parameters()).dtype
    run = _Run(mapper, training, len(features), seed)
    ids, at = clip.insert_at_end(clip.tokenize([prompt]))
    path = None if checkpoint is None else Path(checkpoint)
    losses = run.resume(path, prompt) if path and path.is_file() else []
    begun, scale = len(losses), clip.logit_scale
    devices = [clip.device] if clip.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), clip.frozen():
        for step in range(begun, run.steps):
            torch.manual_seed(split(seed, "dropout", step))
            rows = run.rows(step).to(clip.device)
            with torch.autocast(clip.device.type, torch.bfloat16, enabled=training.bfloat16):
                words = mapper(features[rows].to(dtype))[:, None]
                found = clip.encode_text(ids.expand(len(rows), -1), words, at.expand(len(rows), -1))
            found, goal = unit(found), wanted[rows]
            if training.objective == "contrastive":
                loss = symmetric_infonce(goal.to(found.dtype), found, scale)
            else:
                loss = (found - goal).square().sum(dim=1).mean()
            run.update(loss, step)
            losses.append(float(loss.detach()))
            if path and (step + 1) % save_every == 0 and step + 1 < run.steps:
                run.save(path, prompt, step + 1, losses)
    if path and begun < run.steps:
        run.save(path, prompt, run.steps, losses)
    mapper.eval()
    return WordFit(torch.tensor(losses), run.steps, len(features), begun)
