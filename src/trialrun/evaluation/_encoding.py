"""From text to tokens and back: where a prompt ends, what ends an answer, what fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.evaluation._skills import Example, Skill

Ids = tuple[int, ...]


class TokenPair(NamedTuple):
    """A prompt's tokens and an answer's, the end token included where there is room for it."""

    prompt: Ids
    answer: Ids


class Encoder:
    """A tokenizer with one notion of an answer: tokens up to an end token or a greatest number.

    Both are part of the event whose probability is measured. An answer cut off at
    ``max_new_tokens`` has no end token.
    """

    def __init__(self, tokenizer: Any, model: Any, max_new_tokens: int) -> None:
        if getattr(tokenizer, "eos_token_id", None) is None:
            raise UsageError(
                "tokenizer must have an end token, and its eos_token is None: set "
                "tokenizer.eos_token to the token that ends an answer"
            )
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.eos = int(tokenizer.eos_token_id)
        self.ends = frozenset({self.eos, *_configured_ends(model)})
        pad = getattr(tokenizer, "pad_token_id", None)
        # Padding is masked in every pass, so any token serves where none is set aside for it.
        self.pad = self.eos if pad is None else int(pad)
        config = getattr(model, "config", None)
        longest = getattr(config, "max_position_embeddings", None)
        self.longest = longest if isinstance(longest, int) else None
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])

    def prompt(self, text: str, label: str) -> Ids:
        """Return a prompt's tokens, checked to leave room for an answer."""
        ids = self._ids(text)
        if not ids:
            raise UsageError(f"skill {label!r}: a prompt must hold a token, got {text!r}")
        if self.longest is not None and len(ids) + self.max_new_tokens > self.longest:
            raise UsageError(
                f"skill {label!r}: a prompt of {len(ids)} tokens and an answer of up to "
                f"{self.max_new_tokens} exceed the model's {self.longest} positions: shorten the "
                f"prompt, show fewer shots, or lower max_new_tokens"
            )
        return ids

    def pair(self, prompt: str, answer: str, label: str) -> TokenPair:
        """Return a prompt and an answer as the tokens of the one text they make up."""
        before, joint = self.prompt(prompt, label), self._ids(prompt + answer)
        if joint[: len(before)] != before:
            raise UsageError(
                f"skill {label!r}: the tokenizer merges the end of the prompt {prompt[-20:]!r} "
                f"with the answer {answer[:20]!r}: end the prompt before the space and let the "
                f"answer begin with it"
            )
        found = joint[len(before) :]
        if self.ends.intersection(found):
            raise UsageError(
                f"skill {label!r}: the answer {answer[:40]!r} holds a token that ends answers: "
                f"leave it out, it is added"
            )
        if len(found) > self.max_new_tokens:
            raise UsageError(
                f"skill {label!r}: the answer {answer[:40]!r} takes {len(found)} tokens and "
                f"max_new_tokens is {self.max_new_tokens}: raise it"
            )
        return TokenPair(before, (*found, self.eos)[: self.max_new_tokens])

    def endings(self, pair: TokenPair) -> tuple[Ids, ...]:
        """Return a pair's answer with every token that may end it, or as it is where it is cut."""
        if pair.answer[-1] not in self.ends:
            return (pair.answer,)
        return tuple((*pair.answer[:-1], end) for end in sorted(self.ends))

    def text(self, answer: Ids) -> str:
        """Return what a checker reads: the answer without its end token, nothing else hidden."""
        kept = answer[:-1] if answer and answer[-1] in self.ends else answer
        return str(
            self.tokenizer.decode(
                list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _ids(self, text: str) -> Ids:
        ids = tuple(int(i) for i in self.tokenizer(text)["input_ids"])
        # Some tokenizers close every text; an answer could never follow.
        added = ids and ids[-1] in self.ends
        if added:
            bare = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not len(bare) or bare[-1] not in self.ends:
                ids = ids[:-1]
        if ids and max(ids) >= self.vocabulary:
            raise UsageError(
                f"tokenizer gives token {max(ids)} for {text[-20:]!r}, and the model's vocabulary "
                f"has {self.vocabulary}: give the model's own tokenizer, or resize its embeddings"
            )
        return ids


def _configured_ends(model: Any) -> Iterator[int]:
    for holder in ("generation_config", "config"):
        found = getattr(getattr(model, holder, None), "eos_token_id", None)
        yield from ([found] if isinstance(found, int) else found or [])


def shown_prompts(
    asked: Skill, shown: Skill, *, shots: int, separator: str, seed: int
) -> tuple[str, ...]:
    """Return the prompts of one skill's questions after worked examples of another.

    Every question gets its own draw of examples, none of which is the question itself.

    Raises
    ------
    UsageError
        If there are fewer examples than shots.
    """
    return tuple(
        _with_shots(example, shown, shots, separator, seed, place)
        for place, example in enumerate(asked.test)
    )


def _with_shots(
    asked: Example, shown: Skill, shots: int, separator: str, seed: int, place: int
) -> str:
    others: Sequence[Example] = [e for e in shown.train if e.prompt != asked.prompt]
    if shots > len(others):
        raise UsageError(
            f"shots must be at most the {len(others)} training examples of skill {shown.label!r} "
            f"besides the question, got {shots}: lower shots or give more examples"
        )
    if not isinstance(separator, str):
        raise UsageError(f"separator must be text, got {separator!r}")
    order = rng(seed, "shots", shown.label, place).permutation(len(others))[:shots]
    told = [others[int(i)].prompt + others[int(i)].answer for i in order]
    return separator.join([*told, asked.prompt])
