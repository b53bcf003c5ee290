"""What a dossier hands to the conformance suite: the smallest working instances of its entries.

Every field that is a callable is called with a seed or with what another field made; nothing runs
when a ``specimen.py`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Bad = tuple[str, Callable[[], Any]]
"""A pattern that the message must match, and a call that must raise ``ValueError``."""


@dataclass(frozen=True, kw_only=True)
class FunctionSpecimen:
    """A pure function: ``run(inputs(seed))`` returns arrays or tensors."""

    entry: str
    run: Callable[[Mapping[str, Any]], Any]
    inputs: Callable[[int], dict[str, Any]]
    bad: tuple[Bad, ...]
    invariances: tuple[tuple[str, Callable[[int], tuple[Any, Any]]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BlockSpecimen:
    """A ``torch.nn.Module``, or another object made from settings and called on inputs.

    ``run(instance, inputs)`` returns arrays or tensors. ``batch_axis`` names the inputs that have
    the batch as their first axis, so that a batch of one can be compared with a row of a batch.
    ``save`` and ``load`` are given where the object has a state worth keeping.
    """

    entry: str
    make: Callable[[int], Any]
    inputs: Callable[[int], dict[str, Any]]
    run: Callable[[Any, Mapping[str, Any]], Any]
    bad: tuple[Bad, ...]
    batched: tuple[str, ...] = ()
    save: Callable[[Any, Path], None] | None = None
    load: Callable[[Path], Any] | None = None
    differentiable: bool = False
    compiles: bool = False
    invariances: tuple[tuple[str, Callable[[int], tuple[Any, Any]]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class EstimatorSpecimen:
    """A scikit-learn estimator: ``fit(**inputs)``, then ``run(fitted, inputs)``.

    ``check`` builds the instance given to scikit-learn's own estimator checks.
    """

    entry: str
    make: Callable[[int], Any]
    inputs: Callable[[int], dict[str, Any]]
    run: Callable[[Any, Mapping[str, Any]], Any]
    check: Callable[[], Any]
    bad: tuple[Bad, ...]
    expected_failed_checks: Mapping[str, str]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]
    invariances: tuple[tuple[str, Callable[[int], tuple[Any, Any]]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PatchSpecimen:
    """A reversible change to a model someone else owns.

    ``host(seed)`` builds a model, ``make()`` the patch, ``identity()`` a setting of it that must
    leave the host's outputs bit-identical; ``run(model, inputs)`` returns tensors; ``generate``
    returns token ids; ``reload(model, folder)`` saves the patched model, loads it anew and attaches
    the patch from what was saved.
    """

    entry: str
    host: Callable[[int], Any]
    make: Callable[[], Any]
    identity: Callable[[], Any]
    inputs: Callable[[int], dict[str, Any]]
    run: Callable[[Any, Mapping[str, Any]], Any]
    generate: Callable[[Any, Mapping[str, Any]], Any]
    reload: Callable[[Any, Path], Any]
    bad: tuple[Bad, ...]


Specimen = FunctionSpecimen | BlockSpecimen | EstimatorSpecimen | PatchSpecimen
