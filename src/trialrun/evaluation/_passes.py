"""Forward passes: draw answers and score answers, every prompt read once for all its answers.

A prompt's keys and values are computed once and repeated for its answers, so that a scored token
costs one pass and a drawn token another. Draws are taken at temperature 1 from the whole
distribution; each uses its own row of uniform numbers, so that they do not depend on how work was
batched.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.evaluation._encoding import Encoder, Ids

_LOGITS_AT_ONCE = 2**26
"""Numbers in one pass's logits; 256 MB in float32."""


class Answer(NamedTuple):
    """An answer's tokens with its log-probability in nats under the model it was drawn from."""

    ids: Ids
    log_prob: float


class _Row(NamedTuple):
    prompt: int
    place: int
    size: int


class _Prefix(NamedTuple):
    """Read prompts: their cache, mask, next positions and last logits, one row for each answer."""

    cache: Any
    mask: Int[Tensor, "rows places"]
    position: Int[Tensor, " rows"]
    logits: Float[Tensor, "rows vocabulary"]

    def rows(self, kept: Tensor) -> _Prefix:
        self.cache.batch_select_indices(kept)
        return _Prefix(self.cache, self.mask[kept], self.position[kept], self.logits[kept])


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Switch dropout off for the length of a block, and put every module back as it was."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def device_of(model: Any) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device


def is_half(model: Any) -> bool:
    """Tell whether a model computes in a 16-bit type."""
    return next(model.parameters()).dtype in (torch.float16, torch.bfloat16)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or float64 where they came so."""
    return logits if logits.dtype == torch.float64 else logits.float()


class Reader:
    """A model with the settings of its passes."""

    def __init__(self, model: Any, encoder: Encoder, batch_tokens: int) -> None:
        self.model, self.encoder, self.batch_tokens = model, encoder, batch_tokens
        # Adapters and compilation wrap the model in one whose forward hides what it takes.
        inner = getattr(model, "_orig_mod", model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self._takes = set(inspect.signature(inner.forward).parameters)

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Ids], uniforms: NDArray[np.float64]
    ) -> list[tuple[Answer, ...]]:
        """Draw answers to every prompt; ``uniforms`` is (prompts, draws, tokens) in [0, 1)."""
        rows = [
            _Row(p, m, uniforms.shape[2])
            for p in range(len(prompts))
            for m in range(uniforms.shape[1])
        ]
        found: list[list[Answer]] = [[Answer((), 0.0)] * uniforms.shape[1] for _ in prompts]
        with at_rest(self.model):
            for batch in self._batches(prompts, rows, answered=1):
                numbers = uniforms[[r.prompt for r in batch], [r.place for r in batch]]
                for row, answer in zip(batch, self._draw(self._read(prompts, batch), numbers)):
                    found[row.prompt][row.place] = answer
        return [tuple(answers) for answers in found]

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
    ) -> list[NDArray[np.float64]]:
        """Return the log-probability of every answer to every prompt, in nats."""
        rows: list[_Row] = []
        index: list[list[int]] = []
        for p, given in enumerate(answers):
            places: dict[Ids, int] = {}
            for ids in given:
                if ids not in places:
                    places[ids] = len(rows)
                    rows.append(_Row(p, len(rows), len(ids)))
            index.append([places[ids] for ids in given])
        wanted = [ids for given in answers for ids in dict.fromkeys(given)]
        found = np.zeros(len(rows))
        with at_rest(self.model):
            for batch in self._batches(prompts, rows):
                texts = [wanted[row.place] for row in batch]
                scored = self._score(self._read(prompts, batch), texts)
                found[[row.place for row in batch]] = scored
        return [found[places] for places in index]

    def _batches(
        self, prompts: Sequence[Ids], rows: Sequence[_Row], *, answered: int | None = None
    ) -> Iterator[list[_Row]]:
        """Cut rows into batches of prompts of like length, within the memory allowed."""
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        batch: list[_Row] = []
        width = size = 0
        for row in sorted(rows, key=lambda r: (len(prompts[r.prompt]), r.prompt, r.place)):
            wider, larger = max(width, len(prompts[row.prompt])), max(size, row.size)
            slots = (len(batch) + 1) * (wider + larger)
            numbers = (len(batch) + 1) * (answered or larger) * vocabulary
            if batch and (slots > self.batch_tokens or numbers > _LOGITS_AT_ONCE):
                yield batch
                batch, wider, larger = [], len(prompts[row.prompt]), row.size
            batch.append(row)
            width, size = wider, larger
        if batch:
            yield batch

    def _read(self, prompts: Sequence[Ids], batch: Sequence[_Row]) -> _Prefix:
        """Read a batch's prompts, each once, and repeat what was read for its answers."""
        unique = list(dict.fromkeys(row.prompt for row in batch))
        width = max(len(prompts[p]) for p in unique)
        padded = [[self.encoder.pad] * (width - len(prompts[p])) + [*prompts[p]] for p in unique]
        device = device_of(self.model)
        lengths = torch.tensor([len(prompts[p]) for p in unique], device=device)
        mask = torch.arange(width, device=device)[None, :] >= width - lengths[:, None]
        out = self._forward(
            torch.tensor(padded, device=device),
            mask.long(),
            (mask.long().cumsum(1) - 1).clamp(min=0),
            last_only=True,
        )
        if getattr(out, "logits", None) is None:
            raise UsageError(
                f"{type(self.model).__name__} gives no logits: load the model with its language "
                f"head, by AutoModelForCausalLM"
            )
        cache = getattr(out, "past_key_values", None)
        if not hasattr(cache, "batch_select_indices"):
            raise NotRunnable(
                f"{type(self.model).__name__} keeps no cache whose rows can be repeated: choose a "
                f"decoder that generates with a key-value cache"
            )
        place = {p: i for i, p in enumerate(unique)}
        rows = torch.tensor([place[row.prompt] for row in batch], device=device)
        return _Prefix(cache, mask.long(), lengths, wide(out.logits[:, -1])).rows(rows)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, *, cache: Any = None, last_only: bool
    ) -> Any:
        given: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
        if "position_ids" in self._takes:
            given["position_ids"] = positions
        if last_only and "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        return self.model(input_ids=ids, attention_mask=mask, use_cache=True, **given)

    def _score(self, prefix: _Prefix, answers: Sequence[Ids]) -> NDArray[np.float64]:
        size = max(len(ids) for ids in answers)
        device = prefix.mask.device
        padded = [[*ids] + [self.encoder.pad] * (size - len(ids)) for ids in answers]
        tokens = torch.tensor(padded, device=device)
        given = torch.tensor([len(ids) for ids in answers], device=device)
        steps = torch.arange(size, device=device)
        logits = prefix.logits[:, None]
        if size > 1:
            # Padding stands behind each answer, where a causal model does not look.
            mask = torch.cat([prefix.mask, torch.ones_like(tokens[:, 1:])], dim=1)
            positions = prefix.position[:, None] + steps[:-1]
            out = self._forward(
                tokens[:, :-1], mask, positions, cache=prefix.cache, last_only=False
            )
            logits = torch.cat([logits, wide(out.logits)], dim=1)
        each = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(2)
        return torch.where(steps < given[:, None], each, 0.0).double().sum(1).cpu().numpy()

    def _draw(self, prefix: _Prefix, uniforms: NDArray[np.float64]) -> list[Answer]:
        numbers = torch.from_numpy(uniforms).to(prefix.mask.device)
        drawn: list[list[int]] = [[] for _ in uniforms]
        total = np.zeros(len(uniforms))
        alive = np.arange(len(uniforms))
        for step in range(uniforms.shape[1]):
            token, log_prob = _choose(prefix.logits, numbers[alive, step])
            chosen = token.tolist()
            total[alive] += log_prob.cpu().numpy()
            for row, value in zip(alive, chosen):
                drawn[row].append(value)
            going = np.array([value not in self.encoder.ends for value in chosen])
            if step + 1 == uniforms.shape[1] or not going.any():
                break
            if not going.all():
                kept = torch.from_numpy(np.flatnonzero(going)).to(token.device)
                prefix, token, alive = prefix.rows(kept), token[kept], alive[going]
            mask = torch.cat([prefix.mask, torch.ones_like(prefix.mask[:, :1])], dim=1)
            out = self._forward(
                token[:, None], mask, prefix.position[:, None], cache=prefix.cache, last_only=True
            )
            prefix = _Prefix(prefix.cache, mask, prefix.position + 1, wide(out.logits[:, -1]))
        return [Answer(tuple(ids), float(value)) for ids, value in zip(drawn, total)]


def _choose(
    logits: Float[Tensor, "rows vocabulary"], uniforms: Float[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Invert the distribution function at each row's number: the first token that passes it."""
    running = logits.double().softmax(1).cumsum(1)
    token = torch.searchsorted(running, (uniforms * running[:, -1])[:, None], right=True)
    token = token.clamp(max=logits.shape[1] - 1)
    log_prob = logits.gather(1, token)[:, 0] - logits.logsumexp(1)
    return token[:, 0], log_prob.double()
