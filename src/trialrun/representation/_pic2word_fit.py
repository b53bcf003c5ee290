"""Train the mapper on pictures alone (saito2023pic2word).

Each picture's pseudo-word is inserted at the end of "a photo of"; the sentence's embedding must
then pick its own picture out of the batch, and the picture its own sentence (symmetric InfoNCE at
CLIP's frozen temperature). CLIP stays in eval; gradients flow through its text tower to the mapper.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trialrun.core.seeds import split
from trialrun.representation._pic2word_adapters import as_clip
from trialrun.representation._pic2word_clip import Clip, tensor_digest, weights_digest
from trialrun.representation._pic2word_compose import unit
from trialrun.representation._pic2word_pictures import embed_batches
from trialrun.representation._pic2word_run import Run, WordTraining, check_whole, joined

_UNIT = 1e-3
"""Lengths this close to 1 for every picture are no chance."""


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
    features = _usable(features, "embeddings")
    if (features.float().norm(dim=1) - 1).abs().max() < _UNIT:
        warnings.warn(
            "all embeddings are unit vectors, and the mapper is trained on those that are not "
            "normalised, as queries will not be: encode with normalize=False",
            stacklevel=4,  # over fit_image_to_word and its decorator
        )
    return features.to(clip.device)


def _usable(features: Tensor, what: str) -> Tensor:
    bad = (~torch.isfinite(features).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(
            f"{what} must be finite, got {len(bad)} that are not, the first at row "
            f"{int(bad[0])}: encode those pictures in float32 or leave them out"
        )
    # What was made in inference mode cannot be saved for a backward pass, a copy can.
    return features.detach().clone() if features.is_inference() else features.detach()


@torch.inference_mode(False)
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
        the same run (settings, seed, prompt, mapper, and digests of embeddings, targets and CLIP),
        training goes on from it and ends with the same bits; of another run it is refused.
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
        fewer than two or not finite, as targets must be.
    UsageError
        If the checkpoint is damaged or of another run.

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
    check_whole("save_every", save_every, low=1)
    if "*" in prompt:
        raise ValueError(
            f"the training prompt takes its word at the end and no '*', got {prompt!r}"
        )
    features = _features_of(clip, images)
    if targets is not None and targets.shape != features.shape:
        raise ValueError(
            f"targets must have shape {tuple(features.shape)}, got {tuple(targets.shape)}"
        )
    aims = features if targets is None else _usable(targets, "targets").to(clip.device)
    wanted = unit(aims)
    ids, at = clip.insert_at_end(clip.tokenize([prompt]))
    mapper.to(clip.device).train()
    path = None if checkpoint is None else Path(checkpoint)
    told = {"prompt": prompt}
    if path:
        told |= {
            "embeddings": tensor_digest(features=features),
            "targets": tensor_digest(targets=aims),
            "CLIP": weights_digest(clip),
        }
    run = Run(mapper, training, len(features), seed, told)
    losses = run.resume(path) if path and path.is_file() else []
    begun, scale = len(losses), clip.logit_scale
    devices = [clip.device] if clip.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), clip.frozen(), torch.enable_grad():
        read = clip.reader(ids, at)
        for step in range(begun, run.steps):
            torch.manual_seed(split(seed, "dropout", step))
            rows = run.rows(step).to(clip.device)
            loss = _loss(mapper, read, features[rows], wanted[rows], training, scale)
            run.update(loss, step)
            losses.append(loss.detach())  # not read here: that would wait for the device
            if path and (step + 1) % save_every == 0 and step + 1 < run.steps:
                run.save(path, step + 1, losses)
    if path and begun < run.steps:
        run.save(path, run.steps, losses)
    mapper.eval()
    return WordFit(joined(losses), run.steps, len(features), begun)


def _loss(
    mapper: nn.Module,
    read: Callable[[Tensor], Tensor],
    features: Tensor,
    goal: Tensor,
    training: WordTraining,
    scale: float,
) -> Tensor:
    """Return the loss of a batch whose sentences must find ``goal``, unit vectors."""
    dtype = next(mapper.parameters()).dtype
    with torch.autocast(features.device.type, torch.bfloat16, enabled=training.bfloat16):
        found = read(mapper(features.to(dtype))[:, None])
    found = unit(found)
    if training.objective == "contrastive":
        return symmetric_infonce(goal.to(found.dtype), found, scale)
    return (found - goal).square().sum(dim=1).mean()
