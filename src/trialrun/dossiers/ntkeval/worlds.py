"""Small worlds in which everything about the kernel can be computed.

Two operations on digits below ``MODULUS`` in two notations. In the told world the question names
its operation, plus or minus modulo ``MODULUS``; in the hidden world, where the operation is to take
the larger or the smaller, only worked examples before the question tell it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trialrun.blocks.bytelm import Batch, Schedule, Shape, make_model, train
from trialrun.core.seeds import rng
from trialrun.evaluation.ntkeval import Example, Skill

MODULUS = 7
ALPHABET = "0123456789+-=?<>pm:."
END = "."
TOLD = {
    ("add", "infix"): "{a}+{b}=",
    ("subtract", "infix"): "{a}-{b}=",
    ("add", "prefix"): "p{a}{b}:",
    ("subtract", "prefix"): "m{a}{b}:",
}
HIDDEN = {
    (operation, notation): form
    for operation in ("larger", "smaller")
    for notation, form in (("infix", "{a}?{b}="), ("prefix", "<{a}{b}>"))
}
Cells = dict[tuple[str, str], str]
Pair = tuple[int, int]


def make_tokenizer() -> Any:
    """Return a tokenizer with one token for each character of the worlds."""
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, END))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END)


def answer_to(operation: str, pair: Pair) -> str:
    """Return the right answer to an operation on two digits."""
    a, b = pair
    if operation in ("larger", "smaller"):
        return str(max(pair) if operation == "larger" else min(pair))
    return str((a + b if operation == "add" else a - b) % MODULUS)


def example(cells: Cells, cell: tuple[str, str], pair: Pair, answer: str = "") -> Example:
    """Return one question of a cell; ``answer`` in place of the right one where given."""
    right = answer_to(cell[0], pair)
    told = cells[cell].format(a=pair[0], b=pair[1])
    return Example(told, answer or right, (right,))


def all_pairs(cells: Cells) -> list[Pair]:
    """Return the operands; where the operation is hidden, only those that can tell it apart."""
    pairs = [(a, b) for a in range(MODULUS) for b in range(MODULUS)]
    return pairs if cells is TOLD else [(a, b) for a, b in pairs if a != b]


def make_skills(
    cells: Cells, *, train: int, test: int, seed: int, random_answers: bool = False
) -> dict[tuple[str, str], Skill]:
    """Return the four cells, each with the same operands.

    Where questions tell their operation, a cell is asked what it is trained on: the change is that
    of a continued training on one cell alone, and only the very same cell has seen its questions.
    Where the operation is hidden, examples have other operands than questions do, since an example
    of the same operands in the other notation would give the answer away.

    With ``random_answers`` the examples to train on or to show have a wrong answer in the right
    notation; questions keep the right one.
    """
    pairs = all_pairs(cells)
    order = rng(seed, "operands").permutation(len(pairs))
    taught, asked = ([pairs[i] for i in part] for part in np.split(order[: train + test], [train]))
    if cells is TOLD:
        taught = asked
    made = {}
    for cell in cells:
        shown = [example(cells, cell, pair) for pair in taught]
        if random_answers:
            draw = rng(seed, "wrong", *cell)
            shown = [
                example(cells, cell, pair, wrong_answer(e.answer, draw))
                for pair, e in zip(taught, shown)
            ]
        made[cell] = Skill(cell[0], shown, [example(cells, cell, p) for p in asked], cell[1])
    return made


def wrong_answer(right: str, draw: np.random.Generator) -> str:
    """Return a digit other than the right one, all alike likely."""
    return str((int(right) + int(draw.integers(1, MODULUS))) % MODULUS)


def _table(cells: Cells) -> NDArray[np.int64]:
    """Return every example with its answer and end: (cells, operands, characters)."""
    place = {c: i for i, c in enumerate(ALPHABET)}
    texts = [
        [example(cells, cell, pair).prompt + answer_to(cell[0], pair) + END for pair in pairs]
        for cell in cells
        for pairs in (all_pairs(cells),)
    ]
    return np.array([[[place[c] for c in text] for text in row] for row in texts])


def _sequences(cells: Cells, shots: int, seed: int) -> Batch:
    """Return a function that draws texts of examples as tokens: one cell a text."""
    table = _table(cells)
    draw = rng(seed, "sequences")

    def batch(size: int) -> Tensor:
        kind = draw.integers(0, len(table), size=size)
        chosen = draw.integers(0, table.shape[1], size=(size, shots))
        return torch.from_numpy(table[kind[:, None], chosen].reshape(size, -1))

    return batch


def _on_answers(width: int) -> Any:
    """Return weights that count the answers and what closes them, not the operands."""

    def weigh(ids: Tensor) -> Tensor:
        step = torch.arange(1, ids.shape[1]) % width
        return (step >= width - 2).float().expand(ids.shape[0], -1)

    return weigh


def make_hidden_host(
    shape: Shape, schedule: Schedule, *, shots: int, seed: int, device: str = "cpu"
) -> LlamaForCausalLM:
    """Train a model on texts of ``shots`` examples of one hidden operation in one notation."""
    model = _make_model(shape, seed)
    batch = _sequences(HIDDEN, shots, seed)
    weigh = _on_answers(batch(1).shape[1] // shots)
    train(model, batch, schedule, device=device, weigh=weigh)
    return model


def make_told_host(
    shape: Shape,
    round_: Schedule,
    *,
    most: int,
    wanted: float,
    seed: int,
    device: str = "cpu",
) -> LlamaForCausalLM:
    """Train a model on bare questions until it is part of the way.

    Rounds of ``round_`` follow one another, at most ``most``, until the probability of the right
    answer is ``wanted`` on average: a fixed number of steps leaves one seed's model knowing nothing
    and another's everything.
    """
    model = _make_model(shape, seed)
    batch = _sequences(TOLD, 1, seed)
    every = _table(TOLD).reshape(-1, batch(1).shape[1])
    for _ in range(most):
        train(model, batch, round_, device=device, weigh=_on_answers(every.shape[1]))
        if _knows(model, torch.from_numpy(every).to(model.device)) >= wanted:
            break
    return model


@torch.no_grad()
def _knows(model: LlamaForCausalLM, texts: Tensor) -> float:
    logits = model(input_ids=texts[:, :-1]).logits[:, -2:].float().log_softmax(-1)
    return float(logits.gather(2, texts[:, -2:, None]).sum((1, 2)).exp().mean())


def _make_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    model = make_model(shape, seed=seed)
    model.config.eos_token_id = model.generation_config.eos_token_id = ALPHABET.index(END)
    return model
