"""A quality filter trained on examples of what is wanted and what is not (li2024dclm).

A logistic regression on hashed words and pairs of neighbouring words, the shape of the fastText
classifier that DCLM filtered its web text with (from memory: bigrams, linear, positives that read
like instructions). scikit-learn hashes and fits; ours are the streaming, the calibration of the
share to keep, and the file it is kept in.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng, split
from trialrun.pretraining._checks import check_real, check_whole
from trialrun.pretraining._documents import Stream, as_documents, chunks, texts_of

_WEIGHTS, _SETTINGS = "quality.safetensors", "quality.json"
_BATCH = 256


class QualityFilter:
    """Score texts by how much they read like the good examples (li2024dclm).

    Words are runs of letters and digits: put spaces between the words of scripts that write none.

    Parameters
    ----------
    bits : int, 8 to 24
        Words and pairs are hashed into ``2**bits`` columns; a weight is four bytes.
    pairs : bool
        Count pairs of neighbouring words besides words.
    decay : float, above 0
        Weight decay; larger keeps rare words from deciding.
    epochs : int
        Passes over the examples.
    seed : int
        Order of the examples.

    Attributes
    ----------
    weights_ : float32 array of shape (2**bits,)
    offset_ : float

    Raises
    ------
    ValueError
        If a setting lies outside its range, or a text collection is empty.
    MissingExtra
        If scikit-learn or safetensors is not installed.

    Examples
    --------
    >>> good = ["the committee met and agreed on a plan", "she walked home along the river"]
    >>> bad = ["click here buy now best price", "login register cart checkout buy now"]
    >>> quality = QualityFilter(bits=12).fit(good, bad)
    >>> scores = quality.score(["they met along the river", "buy now click here"])
    >>> bool(scores[0] > 0 > scores[1])
    True
    """

    def __init__(
        self,
        *,
        bits: int = 18,
        pairs: bool = True,
        decay: float = 1e-5,
        epochs: int = 5,
        seed: int = 0,
    ):
        check_whole("bits", bits, low=8, high=24)
        check_whole("epochs", epochs, low=1)
        check_real("decay", decay, low=1e-12, high=1.0)
        self.bits, self.pairs, self.decay, self.epochs, self.seed = bits, pairs, decay, epochs, seed

    def _counts(self, texts: Sequence[str]) -> Any:
        text = need("sklearn.feature_extraction.text", extra="pretraining")
        hashing = text.HashingVectorizer(
            n_features=2**self.bits,
            ngram_range=(1, 2 if self.pairs else 1),
            alternate_sign=False,
            norm="l2",
            # Punctuation counts: strings of it are what rubbish is made of.
            token_pattern=r"\w+|[^\w\s]+",
            dtype=np.float32,
        )
        return hashing.transform(texts)

    def fit(self, good: Iterable[Any], bad: Iterable[Any]) -> QualityFilter:
        """Learn from ``good`` and ``bad`` texts or documents; both sides weigh the same.

        Raises
        ------
        UsageError
            If a side is empty.
        """
        sides = texts_of(good, "good"), texts_of(bad, "bad")
        linear = need("sklearn.linear_model", extra="pretraining")
        texts = [*sides[0], *sides[1]]
        label = np.repeat([1, 0], [len(sides[0]), len(sides[1])])
        weight = np.repeat([len(texts) / 2 / len(side) for side in sides], list(map(len, sides)))
        order = rng(self.seed, "order")
        model = linear.SGDClassifier(
            loss="log_loss",
            alpha=self.decay,
            average=True,
            random_state=split(self.seed, "descent") % 2**31,
        )
        # In batches, so that the counts of a large set of examples are never there all at once.
        for _ in range(self.epochs):
            for places in np.array_split(order.permutation(len(texts)), -(-len(texts) // _BATCH)):
                model.partial_fit(
                    self._counts([texts[i] for i in places]),
                    label[places],
                    classes=[0, 1],
                    sample_weight=weight[places],
                )
        self.weights_ = model.coef_[0].astype(np.float32)
        self.offset_ = float(model.intercept_[0])
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise UsageError("this QualityFilter has learnt nothing yet: call fit or load first")

    def score(self, texts: Iterable[Any]) -> NDArray[np.float32]:
        """Return the log odds, shape (texts,), that each of ``texts`` is good.

        Raises
        ------
        UsageError
            If nothing was learnt, or there is no text.
        """
        self._check_fitted()
        found = texts_of(texts)
        # Each text is summed on its own: its score does not depend on its neighbours' company.
        parts = [self._counts(part) @ self.weights_ for part in chunks(found, _BATCH)]
        return (np.concatenate(parts) + np.float32(self.offset_)).astype(np.float32)

    def threshold(self, texts: Iterable[Any], share: float) -> float:
        """Return the score that the best ``share`` of ``texts`` reach.

        Where texts tie at that score, more than the share reach it.

        Raises
        ------
        ValueError
            If ``share`` lies outside (0, 1].
        """
        check_share(share)
        scores = np.sort(self.score(texts))[::-1]
        return float(scores[max(1, round(share * len(scores))) - 1])

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and settings (JSON) into ``folder``."""
        self._check_fitted()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = need("safetensors.numpy", extra="pretraining")
        tensors.save_file({"weights": self.weights_}, folder / _WEIGHTS)
        settings = {
            "bits": self.bits,
            "pairs": self.pairs,
            "decay": self.decay,
            "epochs": self.epochs,
            "seed": self.seed,
        }
        said = {"settings": settings, "offset": self.offset_, "crc": zlib.crc32(self.weights_)}
        (folder / _SETTINGS).write_text(json.dumps(said), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> QualityFilter:
        """Read what `save` wrote into ``folder``.

        Raises
        ------
        UsageError
            If the folder holds no filter, or its two files do not belong together.
        """
        folder = Path(folder)
        tensors = need("safetensors.numpy", extra="pretraining")
        broken = need("safetensors", extra="pretraining").SafetensorError
        try:
            said = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
            weights = tensors.load_file(folder / _WEIGHTS)["weights"]
            made = cls(**said["settings"])
            offset, crc = float(said["offset"]), said["crc"]
        except (OSError, ValueError, KeyError, TypeError, broken) as error:
            raise UsageError(
                f"{folder} holds no quality filter ({error}): it needs {_WEIGHTS} and {_SETTINGS}"
            ) from error
        if weights.shape != (2**made.bits,) or zlib.crc32(weights) != crc:
            raise UsageError(f"{folder}: {_WEIGHTS} is not the file that {_SETTINGS} speaks of")
        made.weights_, made.offset_ = weights, offset
        return made


def check_share(share: Any) -> None:
    """Raise unless ``share`` lies in (0, 1]."""
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
        raise UsageError(f"share must be a number above 0 and at most 1, got {share!r}")


class QualityTop:
    """Let the best share of documents through.

    The score to reach is set on the first documents, which wait until there are ``sample`` of
    them; from then on documents stream. On a stream whose quality drifts the share drifts too, and
    tasks that see different documents set different scores: give them all one ``threshold``, from
    `QualityFilter.threshold` on a sample of everything. Documents that tie with the last of the
    share come through as well: where many are alike (all empty, say), more than the share do.

    Parameters
    ----------
    quality : QualityFilter
        One that has learnt.
    share : float in (0, 1]
        Share of documents to keep.
    sample : int
        Documents on which the score to reach is set.
    threshold : float or None
        The score to reach, where it is known; ``share`` and ``sample`` then play no part.

    Attributes
    ----------
    threshold_ : float
        The score to reach, of the last stream.

    Raises
    ------
    ValueError
        If ``quality`` is no `QualityFilter` that has learnt, or the share lies outside (0, 1].

    Examples
    --------
    >>> quality = QualityFilter(bits=12).fit(["a quiet walk home"], ["buy now buy now"])
    >>> top = QualityTop(quality, share=0.5)
    >>> [d.text for d in top(["buy now", "a walk", "buy buy", "quiet home"])]
    ['a walk', 'quiet home']
    """

    def __init__(
        self,
        quality: QualityFilter,
        share: float = 0.1,
        *,
        sample: int = 10_000,
        threshold: float | None = None,
    ):
        if not isinstance(quality, QualityFilter):
            raise UsageError(f"quality must be a QualityFilter, got {type(quality).__name__}")
        check_share(share)
        known = threshold is None or (isinstance(threshold, Real) and np.isfinite(threshold))
        if not known:
            raise UsageError(f"threshold must be a finite score, got {threshold!r}")
        check_whole("sample", sample, low=1)
        quality._check_fitted()
        self.quality, self.share, self.sample = quality, share, sample
        self.threshold = threshold

    def __call__(self, stream: Stream, *_task: int) -> Iterator[Any]:
        """Yield the documents of ``stream`` that reach the score."""
        documents = as_documents(stream)
        waiting: list[Any] = []
        if self.threshold is not None:
            self.threshold_ = self.threshold
        else:
            waiting = list(islice(documents, self.sample))
            if not waiting:
                return
            self.threshold_ = self.quality.threshold(waiting, self.share)
        for batch in chunks(chain(waiting, documents), _BATCH):
            for document, score in zip(batch, self.quality.score(batch)):
                if score >= self.threshold_:
                    yield document
