"""The training loop: phases on any number of processes through Accelerate, the same every time.

Which sequences a step takes and its rate are functions of the seed and the step, never of the
number of processes; the loss is summed over all processes' trained tokens and divided by their
number. Without dropout a run on two processes therefore differs from a run on one by rounding only.
Dropout's draws depend on the seed, the step, the process and the pieces it works in; with them as
they were, a resumed run differs from an uninterrupted one not at all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import numpy as np
import torch
from accelerate import Accelerator

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.pretraining._chat import Batch, Example, collate
from trialrun.pretraining._checkpoints import (
    Progress,
    digest,
    latest,
    load_moments,
    read_progress,
    save_checkpoint,
)
from trialrun.pretraining._loading import load_model
from trialrun.pretraining._losses import IGNORED, answer_logps, dpo_loss, sft_loss
from trialrun.pretraining._mixing import Mixture
from trialrun.pretraining._phases import Phase, Phases
from trialrun.pretraining._sources import (
    ChatRows,
    Rows,
    Vocabulary,
    byte_vocabulary,
    rows_of,
)

_UNLIKE = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW's settings. ``decay`` acts on matrices only; ``clip`` is the largest gradient norm."""

    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.1
    epsilon: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        check_range("decay", self.decay, low=0)
        for name in ("epsilon", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where a run keeps its log and checkpoints, how often (in steps), and how many it keeps."""

    folder: Path
    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        check_range("every", self.every, low=1, unit="steps")
        check_range("keep", self.keep, low=1, unit="checkpoints")


@dataclass(frozen=True)
class Step:
    """One step's line in the log: loss in nats per trained token (or pair), tokens so far."""

    step: int
    phase: str
    loss: float
    rate: float
    tokens: int
    seconds: float


def train(
    model: Any,
    phases: Phases,
    sources: Mapping[str, Any],
    *,
    seed: int,
    optimiser: Optimiser | None = None,
    saving: Saving | None = None,
    micro_batch: int = 8,
    vocabulary: Vocabulary | None = None,
    accelerator: Accelerator | None = None,
    report: Callable[[Step], None] | None = None,
) -> list[Step]:
    """Train a model through its phases, in place (zhao2024moxin).

    Parameters
    ----------
    model : causal language model of transformers
        With a checkpoint in ``saving``, its weights are replaced by the newest one's.
    phases : Phases
    sources : mapping of name to TokenSource or rows of chats or pairs
        Chats and pairs are all encoded once before the first step, so that one that does not fit
        stops the run there and not days later.
    seed : int
        Fixes the order of the data and, for a number of processes and ``micro_batch``, dropout;
        the model's weights are the caller's.
    optimiser : Optimiser or None
        None means the defaults.
    saving : Saving or None
        None keeps nothing on disk.
    micro_batch : int
        Most sequences (or pairs) that one process puts through the model at once.
    vocabulary : Vocabulary or None
        For chats and pairs; None means bytes.
    accelerator : Accelerator or None
        None makes one from what ``accelerate launch`` set, or for this process alone.
    report : callable or None
        Called with each step on the main process.

    Returns
    -------
    list of Step
        The steps of this call; a resumed run returns those after the checkpoint.

    Raises
    ------
    ValueError
        If a step's sequences cannot be shared out evenly, a source is missing or too short, a chat
        holds nothing to train within the context, a token is none of the model's, the reference
        is missing, a checkpoint is of another run or model or lacks weights, or the loss or its
        gradient is no longer finite.
    """
    loop = _Loop(
        accelerator or Accelerator(),
        phases,
        sources,
        seed,
        optimiser or Optimiser(),
        saving,
        micro_batch,
        vocabulary or byte_vocabulary(),
    )
    return loop.run(model, report)


class _Loop:
    def __init__(
        self,
        accelerator: Accelerator,
        phases: Phases,
        sources: Mapping[str, Any],
        seed: int,
        settings: Optimiser,
        saving: Saving | None,
        micro_batch: int,
        vocabulary: Vocabulary,
    ) -> None:
        check_range("micro_batch", micro_batch, low=1, unit="sequences")
        self.accelerator = accelerator
        self.phases = phases
        self.seed = seed
        self.settings = settings
        self.saving = saving
        self.micro_batch = micro_batch
        self.vocabulary = vocabulary
        self.rows = [self._rows(phase, sources) for phase in phases.phases]
        for phase in phases.phases:
            if phase.reference is not None and not Path(phase.reference, "config.json").is_file():
                raise UsageError(
                    f"reference of phase {phase.name!r} must be a model's folder, and "
                    f"{phase.reference} holds no config.json"
                )
        self.reference: Any = None

    def _name(self, model: Any) -> str:
        sizes = [{name: len(rows) for name, rows in found.items()} for found in self.rows]
        config = {k: v for k, v in model.config.to_dict().items() if k not in _UNLIKE}
        kept = json.dumps(config, sort_keys=True, default=str)
        return digest(self.phases.phases, self.seed, astuple(self.settings), sizes, kept)

    def _check_rows(self, model: Any) -> None:
        talks = [phase.name for phase in self.phases.phases if phase.objective != "text"]
        if talks and self.vocabulary.size > model.config.vocab_size:
            raise UsageError(
                f"the vocabulary of {self.vocabulary.size} tokens, end token included, must fit "
                f"the model's {model.config.vocab_size} for phase {talks[0]!r}: give the model's "
                f"own tokenizer as vocabulary"
            )
        accelerator = self.accelerator
        for found in self.rows:
            for rows in found.values():
                if isinstance(rows, ChatRows):
                    for row in range(
                        accelerator.process_index, len(rows), accelerator.num_processes
                    ):
                        _check_tokens(rows[row], model.config.vocab_size)

    def _rows(self, phase: Phase, sources: Mapping[str, Any]) -> dict[str, Rows]:
        world = self.accelerator.num_processes
        if phase.sequences % world:
            raise UsageError(
                f"the {phase.sequences} sequences a step of phase {phase.name!r} must be a "
                f"multiple of the {world} processes: change batch_tokens or the processes"
            )
        Mixture(phase, sources, seed=self.seed)
        return {
            name: rows_of(phase.objective, sources[name], phase.context, self.vocabulary)
            for name in phase.shares
        }

    def run(self, model: Any, report: Callable[[Step], None] | None) -> list[Step]:
        name = self._name(model)
        accelerator, start = self.accelerator, Progress(run=name)
        checkpoint = latest(self.saving.folder) if self.saving else None
        if checkpoint is not None:
            start = read_progress(checkpoint, run=name)
            _load_weights(model, checkpoint)
        if start.step < self.phases.steps:
            self._check_rows(model)
        model.train()
        bare = torch.optim.AdamW(
            _groups(model, self.settings.decay),
            lr=1.0,
            betas=(self.settings.beta1, self.settings.beta2),
            eps=self.settings.epsilon,
        )
        model, optimiser = accelerator.prepare(model, bare)
        if checkpoint is not None:
            load_moments(accelerator.unwrap_model(model), optimiser, checkpoint)
        self._open_log(start.step)
        steps = []
        mixture = None
        for number in range(start.step, self.phases.steps):
            place = self.phases.place(number)
            phase = self.phases.phases[place.phase]
            if mixture is None or place.step == 0:
                mixture = Mixture(phase, self.rows[place.phase], seed=self.seed)
                if place.step:
                    mixture.restore(start.taken)
                self._load_reference(phase)
            began = time.perf_counter()
            loss = self._step(model, optimiser, phase, self.rows[place.phase], mixture, number)
            done = Step(
                number,
                phase.name,
                loss,
                self.phases.rate(number),
                self._tokens(number),
                time.perf_counter() - began,
            )
            steps.append(done)
            self._log(done, report)
            last = number + 1 == self.phases.steps
            if self.saving and (last or (number + 1) % self.saving.every == 0):
                progress = Progress(number + 1, mixture.state(), name)
                save_checkpoint(
                    accelerator,
                    model,
                    optimiser,
                    self.saving.folder,
                    progress,
                    keep=self.saving.keep,
                )
        accelerator.unwrap_model(model).eval()
        if accelerator.device.type != "cpu":  # it collects all garbage: a fifth of a second
            accelerator.free_memory()
        return steps

    def _tokens(self, number: int) -> int:
        place = self.phases.place(number)
        before = sum(p.steps * p.batch_tokens for p in self.phases.phases[: place.phase])
        return before + (place.step + 1) * self.phases.phases[place.phase].batch_tokens

    def _step(
        self,
        model: Any,
        optimiser: Any,
        phase: Phase,
        rows: Mapping[str, Rows],
        mixture: Mixture,
        number: int,
    ) -> float:
        accelerator = self.accelerator
        drawn = mixture.step()[accelerator.process_index :: accelerator.num_processes]
        examples = [rows[name][row] for name, row in drawn]
        size = accelerator.unwrap_model(model).config.vocab_size
        for example in examples:
            _check_tokens(example, size)
        count = len(examples)
        if phase.objective != "preference":
            count = sum(int((np.asarray(e.labels)[1:] != IGNORED).sum()) for (e,) in examples)
        device = accelerator.device
        total = int(accelerator.reduce(torch.tensor(count, device=device), "sum"))
        for group in optimiser.param_groups:
            group["lr"] = self.phases.rate(number)
        optimiser.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=device, dtype=torch.float64)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(split(self.seed, "step", number, accelerator.process_index))
            pieces = range(0, len(examples), self.micro_batch)
            for at in pieces:
                last = at == pieces[-1]
                with nullcontext() if last else accelerator.no_sync(model):
                    loss = self._loss(model, phase, examples[at : at + self.micro_batch], total)
                    # Processes' gradients are averaged, and each holds its part of the sum.
                    accelerator.backward(loss * accelerator.num_processes)
                summed += loss.detach().double()
        found = float(accelerator.reduce(summed, "sum"))
        if not math.isfinite(found):
            raise UsageError(
                f"the loss at step {number} is {found}: lower the rate of phase {phase.name!r} or "
                f"look at its data; the newest checkpoint is still good"
            )
        norm = float(accelerator.clip_grad_norm_(model.parameters(), self.settings.clip))
        if not math.isfinite(norm):
            raise UsageError(
                f"the gradient's norm at step {number} is {norm}: lower the rate of phase "
                f"{phase.name!r} or look at its data; the newest checkpoint is still good"
            )
        optimiser.step()
        return found

    def _loss(self, model: Any, phase: Phase, examples: Sequence[Any], total: int) -> torch.Tensor:
        flat = [part for example in examples for part in example]
        batch = collate(flat, pad=self.vocabulary.end)
        device = self.accelerator.device
        batch = Batch(*(part.to(device) for part in batch))
        if phase.objective == "text":
            logits = model(input_ids=batch.input_ids[:, :-1], use_cache=False).logits
            return (
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), batch.input_ids[:, 1:].flatten(), reduction="sum"
                )
                / total
            )
        if phase.objective == "chat":
            return sft_loss(_logits(model, batch), batch.labels, count=total)
        mine = answer_logps(_logits(model, batch), batch.labels)
        with torch.no_grad(), self.accelerator.autocast():
            theirs = answer_logps(_logits(self.reference, batch), batch.labels)
        pair = (mine[0::2], mine[1::2], theirs[0::2], theirs[1::2])
        return dpo_loss(*pair, beta=phase.beta).loss * len(examples) / total

    def _load_reference(self, phase: Phase) -> None:
        self.reference = None
        if phase.reference is None:
            return
        model = load_model(phase.reference, local=True)
        self.reference = model.to(self.accelerator.device).eval().requires_grad_(False)

    def _open_log(self, step: int) -> None:
        if not (self.saving and self.accelerator.is_main_process):
            return
        self.saving.folder.mkdir(parents=True, exist_ok=True)
        log = self.saving.folder / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        # Steps after the checkpoint are run again, and a killed run may have left half a line.
        log.write_text("".join(f"{line}\n" for line in lines[:step]), encoding="utf-8")

    def _log(self, step: Step, report: Callable[[Step], None] | None) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.saving:
            with (self.saving.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")
        if report is not None:
            report(step)


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits


def _groups(model: Any, decay: float) -> list[dict[str, Any]]:
    weights = [w for w in model.parameters() if w.requires_grad]
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def _load_weights(model: Any, checkpoint: Path) -> None:
    model.load_state_dict(load_model(checkpoint, dtype=model.dtype, local=True).state_dict())


def _check_tokens(examples: Sequence[Example], size: int) -> None:
    for example in examples:
        ids = np.asarray(example.ids)
        if ids.max() >= size or ids.min() < 0:
            wrong = int(ids.max() if ids.max() >= size else ids.min())
            raise UsageError(
                f"tokens must be in 0..{size - 1}, the model's vocabulary, got {wrong}: encode the "
                f"sources with the model's own tokenizer"
            )
