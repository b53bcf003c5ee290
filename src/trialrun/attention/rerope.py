"""ReRoPE and Leaky ReRoPE: longer contexts for rotary models, without tuning (su2023rerope).

Written from the map of distances given in the author's posts and code; no author code was used.
The used distance is f(d) = d for d < w, and beyond the window w (ReRoPE) or w + (d - w)/k (leaky
with slope k), so that it never leaves the range the model was trained on.

Ours, not theirs: the reference scores every pair twice, in two full matrices. The two sets of
pairs are disjoint, so here each pair is scored once, a band and a shifted triangle merged by
log-sum-exp: stock kernels do it in memory linear in length. Positions and not indices decide near
and far in padded rows; several new tokens at a time are decoded by the same code as one. What
differs: no attention dropout, no second derivatives, no static caches. The log-n factor
max(1, ln(position + 1)/ln(train_len)) is applied only where it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trialrun.attention import _stack  # noqa: F401

# isort: split
from jaxtyping import Float, Shaped
from torch import Tensor

from trialrun.attention._rectified import (
    Rectified,
    Scheme,
    attend_rows,
    real_rows,
)
from trialrun.attention._rerope_call import attend_at_positions, check_call
from trialrun.blocks.attention import check_qkv, pick_backend
from trialrun.blocks.patching import (
    attached,
    mark_attached,
    refuse_second,
    undo_attached,
)
from trialrun.blocks.rotary import Rotary
from trialrun.core.errors import UsageError
from trialrun.core.extras import need


def rerope_attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch kv_heads key width"],
    v: Float[Tensor, "batch kv_heads key value"],
    *,
    rotary: Rotary,
    window: int,
    slope: float | None = None,
    positions: Shaped[Tensor, "... _"] | None = None,
    logn_train_len: int | None = None,
    padding: Shaped[Tensor, "... _"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch heads query value"]:
    """Attend causally at rectified distances (su2023rerope).

    Parameters
    ----------
    q : tensor of shape (batch, heads, query, width)
        Un-rotated queries, the last ``query`` tokens of the keys.
    k, v : tensors of shape (batch, kv_heads, key, width)
        Un-rotated keys, and values; ``heads`` is a multiple of ``kv_heads``.
    rotary : Rotary
        The model's rotary embedding.
    window : int
        Tokens up to which distances are exact, at least 1 and below the training length.
    slope : float or None
        None is ReRoPE, flat beyond the window; a number above 1 is Leaky ReRoPE, in which
        ``slope`` tokens beyond it add one token of distance.
    positions : tensor of shape (key,) or (batch, key), or None
        Position of every key, in tokens. None counts real tokens from 0.
    logn_train_len : int or None
        Training length, at least 2 tokens, that switches on the log-n factor on the queries.
    padding : bool tensor of shape (batch, key) or None
        True where a token is real. Padded queries give 0. None means all are real.
    backend : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``, as in ``blocks.attention``.

    Returns
    -------
    tensor of shape (batch, heads, query, width)

    Raises
    ------
    ValueError
        If a shape, dtype or setting does not fit; the sentence names it.

    Examples
    --------
    Up to the window nothing changes; beyond it distance 2 is used for every pair.

    >>> import torch
    >>> from trialrun.blocks.rotary import Rotary
    >>> x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    >>> rotary = Rotary(8)
    >>> wide = rerope_attention(x, x, x, rotary=rotary, window=5)
    >>> tight = rerope_attention(x, x, x, rotary=rotary, window=2)
    >>> torch.allclose(wide[:, :, :3], tight[:, :, :3], atol=1e-6)
    True
    >>> torch.allclose(wide[:, :, 3:], tight[:, :, 3:], atol=1e-3)
    False
    """
    check_qkv(q, k, v)
    check_call(q, k, rotary, positions, logn_train_len, padding)
    pick_backend(backend, q, v)
    rule = Rectified(window, slope)
    scheme = Scheme(rotary, rule, logn_train_len, backend)
    if not q.shape[2] or not q.shape[0]:
        return q.new_zeros((*q.shape[:3], v.shape[3]))
    rows = real_rows(padding) if padding is not None else None
    if positions is None:
        return attend_rows(q, k, v, scheme, rows)
    return attend_at_positions(q, k, v, scheme, positions.expand(k.shape[0], -1), rows)


class ReRoPE:
    """Patch a transformers Llama, Mistral, Qwen2 or Qwen3 model to read beyond its training length.

    The model is changed in place and nothing in it is retrained (su2023rerope). ``generate``
    works with caches that grow; keys are cached un-rotated (leaky: at their far angle), so a cache
    filled before `attach` must not be used after it. The settings are kept as ``config.rerope``:
    they travel with ``save_pretrained``, and plain transformers ignores them.

    Parameters
    ----------
    window : int or None
        Tokens up to which distances are exact; a quarter to a half of the training length works
        best. None leaves the model as it is.
    train_len : int or None
        Length the model was trained at, in tokens, above ``window``; None takes
        ``max_position_embeddings`` from the model's config.
    slope : float or None
        None is ReRoPE; a number above 1 is Leaky ReRoPE.
    logn : bool
        Multiply queries by max(1, ln(position + 1)/ln(train_len)): steadier beyond the training
        length, no change below it.
    backend : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``, as in ``blocks.attention``.

    Raises
    ------
    ValueError
        If a setting is out of range, or ``window`` is not below ``train_len``.

    Examples
    --------
    >>> import torch
    >>> from trialrun.blocks.bytelm import Shape, make_model
    >>> model = make_model(Shape(layers=1, width=16, heads=2, length=8), seed=0).eval()
    >>> with ReRoPE(window=4, train_len=8, logn=True).attached(model):
    ...     out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=9, do_sample=False)
    >>> out.shape
    torch.Size([1, 12])
    """

    def __init__(
        self,
        *,
        window: int | None,
        train_len: int | None = None,
        slope: float | None = None,
        logn: bool = False,
        backend: str = "auto",
    ) -> None:
        if window is not None:
            Rectified(window, slope)
        elif slope is not None:
            raise UsageError(f"slope needs a window, got slope={slope!r} with window=None")
        if train_len is not None and window is not None:
            _check_window(window, train_len)
        self.window = window
        self.train_len = train_len
        self.slope = slope
        self.logn = logn
        self.backend = backend

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"ReRoPE({settings})"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, as they are written to the model's config."""
        names = ("window", "train_len", "slope", "logn")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Any) -> ReRoPE:
        """Make the patch that a saved model was used with.

        Parameters
        ----------
        config : transformers config
            With the settings that `attach` left there as ``rerope``.

        Raises
        ------
        ValueError
            If it holds none, or some that this version does not know.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> ReRoPE.from_config(SimpleNamespace(rerope={"window": 4, "train_len": 8}))
        ReRoPE(window=4, train_len=8, slope=None, logn=False)
        """
        settings = getattr(config, "rerope", None)
        if not isinstance(settings, dict):
            raise UsageError(
                f"config.rerope must hold ReRoPE's settings, got {settings!r}: save the model "
                f"while the patch is attached"
            )
        known = {"window", "train_len", "slope", "logn"}
        if not set(settings) <= known or "window" not in settings:
            raise UsageError(
                f"config.rerope must hold window and any of {', '.join(sorted(known))}, got "
                f"{', '.join(sorted(settings))}"
            )
        return cls(**settings)

    @property
    def reach(self) -> float:
        """Length in tokens up to which every used distance lies in the training range."""
        if self.window is None or self.train_len is None:
            return float(self.train_len or math.inf)
        if self.slope is None:
            return math.inf
        return self.window + self.slope * (self.train_len - self.window)

    def attach(self, model: Any) -> Any:
        """Change ``model`` in place and return it.

        Parameters
        ----------
        model : transformers model
            Llama (SmolLM2 too), Mistral, Qwen2 or Qwen3, with unscaled rotary embedding and no
            sliding window.

        Raises
        ------
        ValueError
            If ReRoPE is attached already or cannot serve the model; the sentence has the remedy.
        """
        need("transformers", extra="attention")
        from trialrun.attention import _rerope_host as host

        refuse_second(model, "ReRoPE")
        rotary = host.check_host(model)
        patch = self if self.train_len is not None else self._with_train_len(model.config)
        before = {
            "rerope": getattr(model.config, "rerope", None),
            "implementation": model.config._attn_implementation,
        }
        if patch.window is not None:
            rule = Rectified(patch.window, patch.slope)
            train_len = patch.train_len if patch.logn else None
            scheme = Scheme(host.frequencies(rotary), rule, train_len, patch.backend, turned=True)
            host.register()
            for module in host.attention_modules(model):
                module.forward = host.make_forward(module, scheme)
            model.config._attn_implementation = host.IMPLEMENTATION
        model.config.rerope = patch.to_dict()
        mark_attached(model, "ReRoPE", _Undo(before))
        return model

    def detach(self, model: Any) -> Any:
        """Restore ``model`` to what it was before `attach` and return it.

        Raises
        ------
        ValueError
            If ReRoPE is not attached.
        """
        undo_attached(model, "ReRoPE")
        return model

    @contextmanager
    def attached(self, model: Any) -> Iterator[Any]:
        """Attach for the length of a ``with`` block, and detach also if its body raises."""
        with attached(self, model):
            yield model

    def _with_train_len(self, config: Any) -> ReRoPE:
        length = config.max_position_embeddings
        if self.window is not None:
            _check_window(self.window, length)
        return ReRoPE(
            window=self.window,
            train_len=length,
            slope=self.slope,
            logn=self.logn,
            backend=self.backend,
        )


class _Undo:
    """Restores what `ReRoPE.attach` found; an object, so that a model can be deep-copied."""

    def __init__(self, before: dict[str, Any]) -> None:
        self.before = before

    def __call__(self, model: Any) -> None:
        from trialrun.attention import _rerope_host as host

        for module in host.attention_modules(model):
            vars(module).pop("forward", None)
        model.config._attn_implementation = self.before["implementation"]
        if self.before["rerope"] is None:
            del model.config.rerope
        else:
            model.config.rerope = self.before["rerope"]


def _check_window(window: int, train_len: int) -> None:
    if isinstance(train_len, bool) or not isinstance(train_len, int) or train_len < 2:
        raise UsageError(f"train_len must be a number of tokens, at least 2, got {train_len!r}")
    if window >= train_len:
        raise UsageError(
            f"window must be below the training length of {train_len} tokens, got {window}: "
            f"choose {max(1, train_len // 4)} to {max(1, train_len // 2)}"
        )
