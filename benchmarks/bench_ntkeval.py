"""Time the kernel against generate and one pass per answer, and count passes and copies.

Run as ``python benchmarks/bench_ntkeval.py``. One torch thread.
"""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import torch

from _bench import Row, compare, emit, figure
from trialrun.blocks.bytelm import Shape, make_model
from trialrun.dossiers.ntkeval.worlds import ALPHABET, END, TOLD, make_skills, make_tokenizer
from trialrun.evaluation._passes import Reader
from trialrun.evaluation.ntkeval import GradientStep, LoRAStep, NTKEval, left_untouched

LIMIT = (
    "every drawn answer is read once by the model that drew it and once by the other, so a sampled "
    "token costs two passes, 4 FLOPs a weight; prompts are read once for all their answers. Time "
    "and memory grow as questions x samples x tokens; time also as skills, memory as batch_tokens. "
    "LoRA keeps one set of weights; a training function of one's own adds a copy in main memory"
)
SAMPLES = 16
TOKENS = 4


def _host(width: int = 192, layers: int = 4) -> Any:
    shape = Shape(layers=layers, width=width, heads=4, length=64, vocabulary=len(ALPHABET))
    model = make_model(shape, seed=0).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = ALPHABET.index(END)
    return model


def _probe(model: Any, **more: Any) -> NTKEval:
    settings = {"samples": SAMPLES, "max_new_tokens": TOKENS, **more}
    skills = make_skills(TOLD, train=8, test=8, seed=0)
    return NTKEval(model, skills, tokenizer=make_tokenizer(), **settings)


class _Counting:
    """Count the answer tokens that pass through a model, prompts aside."""

    def __init__(self, model: Any) -> None:
        self.answered = self.prompted = 0
        self.hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        size = given["input_ids"].numel()
        if given.get("past_key_values") is None:
            self.prompted += size
        else:
            self.answered += size


def passes_per_token() -> tuple[float, float]:
    """Return passed answer tokens and passed prompt tokens, each per sampled token."""
    model = _host(width=32, layers=1)
    probe = _probe(model)
    sampled = 0
    plain = Reader.draw

    def draw(*given: Any) -> Any:
        nonlocal sampled
        answers = plain(*given)
        sampled += sum(len(answer.ids) for each in answers for answer in each)
        return answers

    count = _Counting(model)
    with mock.patch.object(Reader, "draw", draw):
        probe.draws("add/infix", GradientStep(rate=0.0))
    count.hook.remove()
    return count.answered / sampled, count.prompted / sampled


def one_by_one(model: Any, probe: NTKEval) -> None:
    """Do one row of the kernel as one would by hand: generate, then a pass for every answer."""
    tokenizer, step = make_tokenizer(), GradientStep(rate=1e-3)
    prompts = [
        torch.tensor([tokenizer(e.prompt)["input_ids"]]) for s in probe.skills for e in s.test
    ]

    def sample() -> list[torch.Tensor]:
        return [
            model.generate(
                p.repeat(SAMPLES // 2, 1),
                do_sample=True,
                top_k=0,
                max_new_tokens=TOKENS,
                pad_token_id=0,
            )
            for p in prompts
        ]

    @torch.no_grad()
    def score(texts: list[torch.Tensor]) -> None:
        for text in texts:
            for row in text:
                model(input_ids=row[None]).logits.log_softmax(-1)

    before = sample()
    score(before)
    with left_untouched(model):
        step(model, probe.lesson("add/infix"))
        after = sample()
        score(after)
        score(before)
    score(after)


def weight_copies(train: Any) -> float:
    """Return bytes of weight-shaped tensors held while measuring, as copies of the model."""
    others = {o.data_ptr() for o in gc.get_objects() if type(o) is torch.nn.Parameter}
    model = _host()
    shapes = {tuple(w.shape) for w in model.parameters() if w.ndim == 2}
    own = sum(w.numel() for w in model.parameters() if w.ndim == 2)
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        found = {
            o.data_ptr(): o.numel()
            for o in gc.get_objects()
            if type(o) in (torch.Tensor, torch.nn.Parameter) and tuple(o.shape) in shapes
            if o.data_ptr() not in others
        }
        most = max(most, sum(found.values()))

    probe = _probe(model, samples=2)
    hook = model.register_forward_hook(look)
    probe.draws("add/infix", train)
    hook.remove()
    return most / own


def rows() -> list[Row]:
    """Measure all rows."""
    model = _host()
    probe = _probe(model)
    step = GradientStep(rate=1e-3)
    answered, prompted = passes_per_token()
    return [
        figure("answer tokens passed per sampled token", answered, "passes", at_most=2.0),
        figure("prompt tokens passed per sampled token (4-token prompts)", prompted, "passes"),
        compare(
            "a row, 32 prompts x 16 draws x 4 tokens, against one by one",
            lambda: probe.draws("add/infix", step),
            lambda: one_by_one(model, probe),
            repeats=3,
            faster=True,
            at_least=3.0,
        ),
        compare(
            "the same with 256 tokens a batch, against 4096",
            lambda: _probe(model, batch_tokens=256).draws("add/infix", step),
            lambda: probe.draws("add/infix", step),
            repeats=3,
        ),
        figure(
            "copies of the weights held, LoRA",
            weight_copies(LoRAStep(steps=1)),
            "x the model",
            at_most=1.1,
        ),
        figure(
            "copies of the weights held, a full training function",
            weight_copies(step),
            "x the model",
            at_most=3.1,
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    emit(rows(), limit=LIMIT)
