"""Multi-head latent attention: one small latent per token is the whole cache (deepseek2024v2).

Written from the algebra of the paper's section 2.1 as the digest and the project's notes give it,
and from how transformers 5.23 lays out weights and caches; no author code was used. A key's
unrotated part and a value are linear in the latent, so a query can be moved into the latent's
space, attend there as to a single key head, and move out again: nothing is expanded.

Ours, not theirs: the query length at which absorbing stops being cheaper, derived for all widths
(`crossover`); scores that are float32 at least, in blocks; a cache that is written in place; the
patch. What differs: no attention dropout in the module; dense causal attention only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
from trialrun.attention import _mla_host as host
from trialrun.attention._mla_block import MultiHeadLatentAttention
from trialrun.attention._mla_cache import LatentCache
from trialrun.attention._mla_convert import (
    ConversionGap,
    Healing,
    Recipe,
    conversion_gap,
    convert_to_mla,
)
from trialrun.attention._mla_convert_model import LatentLlamaConfig, LatentLlamaForCausalLM
from trialrun.attention._mla_paths import absorbed_attention, crossover, materialised_attention
from trialrun.attention._mla_report import CacheReport, cache_bytes, cache_report
from trialrun.blocks.patching import attached, mark_attached, refuse_second, undo_attached
from trialrun.core.errors import UsageError

__all__ = [
    "AbsorbedMLA",
    "CacheReport",
    "ConversionGap",
    "Healing",
    "LatentCache",
    "LatentLlamaConfig",
    "LatentLlamaForCausalLM",
    "MultiHeadLatentAttention",
    "Recipe",
    "absorbed_attention",
    "cache_bytes",
    "cache_report",
    "conversion_gap",
    "convert_to_mla",
    "crossover",
    "materialised_attention",
]


class AbsorbedMLA:
    """Patch a transformers model that caches latents but expands all of them at every step.

    Weights, cache and results stay what they are, up to rounding; steps of few new tokens attend
    to the latents as they lie in the cache (deepseek2024v2, section 2.1). Works with ``generate``:
    greedy, sampled, beams, left padding, static and dynamic caches, cropping. Attention dropout
    in training takes the model's own path. The setting is kept as ``config.absorbed_mla``: it
    travels with ``save_pretrained``, and plain transformers ignores it.

    Parameters
    ----------
    max_query : int or None
        Most new tokens that are absorbed in one step; more are expanded as before. None takes the
        derived `crossover` of each layer and cache length; 0 leaves the model as it is.

    Raises
    ------
    ValueError
        If ``max_query`` is no number of tokens.

    Examples
    --------
    >>> import torch
    >>> from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
    >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32)
    >>> heads = dict(num_attention_heads=2, num_key_value_heads=2, first_k_dense_replace=1)
    >>> widths = dict(kv_lora_rank=8, q_lora_rank=None, qk_nope_head_dim=8, qk_rope_head_dim=4)
    >>> config = DeepseekV2Config(**sizes, **heads, **widths, v_head_dim=8)
    >>> model = DeepseekV2ForCausalLM(config).eval()
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> plain = model.generate(ids, max_new_tokens=4, do_sample=False)
    >>> with AbsorbedMLA().attached(model):
    ...     fast = model.generate(ids, max_new_tokens=4, do_sample=False)
    >>> torch.equal(plain, fast)
    True
    """

    def __init__(self, *, max_query: int | None = None) -> None:
        whole = isinstance(max_query, int) and not isinstance(max_query, bool)
        if max_query is not None and not (whole and max_query >= 0):
            raise UsageError(
                f"max_query must be None or a number of tokens, at least 0, got {max_query!r}"
            )
        self.max_query = max_query

    def __repr__(self) -> str:
        return f"AbsorbedMLA(max_query={self.max_query!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return the setting, as it is written to the model's config."""
        return {"max_query": self.max_query}

    @classmethod
    def from_config(cls, config: Any) -> AbsorbedMLA:
        """Make the patch that a saved model was used with.

        Parameters
        ----------
        config : transformers config
            With what `attach` left there as ``absorbed_mla``.

        Raises
        ------
        ValueError
            If it holds no setting, or one that this version does not know.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> AbsorbedMLA.from_config(SimpleNamespace(absorbed_mla={"max_query": 8}))
        AbsorbedMLA(max_query=8)
        """
        settings = getattr(config, "absorbed_mla", None)
        if not isinstance(settings, dict) or set(settings) != {"max_query"}:
            raise UsageError(
                f"config.absorbed_mla must hold max_query, got {settings!r}: save the model while "
                f"the patch is attached"
            )
        return cls(**settings)

    def attach(self, model: Any) -> Any:
        """Change ``model`` in place and return it.

        Parameters
        ----------
        model : transformers model
            Of a class with an ``expand_kv`` hook, with eager or SDPA attention; the card lists
            the model types.

        Raises
        ------
        ValueError
            If AbsorbedMLA is attached already or cannot serve the model; the sentence has the
            remedy.
        """
        refuse_second(model, "AbsorbedMLA")
        modules = host.check_host(model)
        undo = _Undo(model.config, modules)
        if self.max_query != 0:
            host.register()
            for module in modules:
                host.install(module, self.max_query)
            for config in undo.configs(model):
                host.switch(config)
        model.config.absorbed_mla = self.to_dict()
        mark_attached(model, "AbsorbedMLA", undo)
        return model

    def detach(self, model: Any) -> Any:
        """Restore ``model`` to what it was before `attach` and return it.

        Raises
        ------
        ValueError
            If AbsorbedMLA is not attached.
        """
        undo_attached(model, "AbsorbedMLA")
        return model

    @contextmanager
    def attached(self, model: Any) -> Iterator[Any]:
        """Attach for the length of a ``with`` block, and detach also if its body raises."""
        with attached(self, model):
            yield model


class _Undo:
    """Restores what `AbsorbedMLA.attach` found; an object, so that a model can be deep-copied."""

    def __init__(self, config: Any, modules: list[Any]) -> None:
        self.setting = getattr(config, "absorbed_mla", None)
        self.implementation = modules[0].config._attn_implementation

    def configs(self, model: Any) -> list[Any]:
        """Return the distinct configs that latent attention modules choose their function by."""
        found = [m.config for m in model.modules() if hasattr(type(m), "expand_kv")]
        return list({id(config): config for config in found}.values())

    def __call__(self, model: Any) -> None:
        for module in model.modules():
            if host.PLAN in vars(module):
                host.uninstall(module)
        for config in self.configs(model):
            host.switch_back(config, self.implementation)
        if self.setting is None:
            del model.config.absorbed_mla
        else:
            model.config.absorbed_mla = self.setting
