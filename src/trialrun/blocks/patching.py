"""Reversible changes to a model that someone else owns.

A patch records on the model how to undo itself, so that it can be taken off by another object of
the same settings, after an error, or after the model was copied. Nothing is registered globally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

Model = TypeVar("Model")
_MARK = "_trialrun_patches"


@runtime_checkable
class Patch(Protocol):
    """A reversible change to a host model.

    ``attach`` and ``detach`` return the model they were given; a second ``attach`` of the same
    kind raises ``ValueError``; `attached` detaches also when its body raises.
    """

    def attach(self, model: Any) -> Any:
        """Change the model in place and return it."""

    def detach(self, model: Any) -> Any:
        """Undo `attach` exactly and return the model."""

    def attached(self, model: Any) -> Any:
        """Give a context in which the model is changed."""


def patches_of(model: Any) -> tuple[str, ...]:
    """Return the names of the patches now on ``model``, in the order they were attached.

    Examples
    --------
    >>> class Host: ...
    >>> patches_of(Host())
    ()
    """
    return tuple(getattr(model, _MARK, {}))


def mark_attached(model: Any, name: str, undo: Callable[[Any], None]) -> None:
    """Note on ``model`` that ``name`` is attached; ``undo(model)`` takes it off again.

    Raises
    ------
    ValueError
        If a patch of that name is attached already.

    Examples
    --------
    >>> class Host: ...
    >>> host = Host()
    >>> mark_attached(host, "quiet", lambda model: None)
    >>> patches_of(host)
    ('quiet',)
    """
    refuse_second(model, name)
    vars(model).setdefault(_MARK, {})[name] = undo


def refuse_second(model: Any, name: str) -> None:
    """Raise if a patch called ``name`` is on ``model``.

    Raises
    ------
    ValueError
        Naming the patch and how to take it off.
    """
    if name in patches_of(model):
        raise ValueError(f"{name} is already attached to this model: call detach(model) first")


def undo_attached(model: Any, name: str) -> None:
    """Take the patch called ``name`` off ``model``.

    Raises
    ------
    ValueError
        If it is not attached, or another patch was attached after it.
    """
    names = patches_of(model)
    if name not in names:
        raise ValueError(f"{name} is not attached to this model: call attach(model) first")
    if names[-1] != name:
        raise ValueError(f"{name} lies under {names[-1]}: detach {names[-1]} first")
    marks = vars(model)[_MARK]
    marks[name](model)
    del marks[name]
    if not marks:
        del vars(model)[_MARK]


@contextmanager
def attached(patch: Patch, model: Model) -> Iterator[Model]:
    """Attach ``patch`` for the length of a ``with`` block, and detach it whatever happens.

    Examples
    --------
    >>> class Loud:
    ...     def attach(self, model): model.append("on"); return model
    ...     def detach(self, model): model.append("off"); return model
    >>> with attached(Loud(), []) as model:
    ...     model.append("work")
    >>> model
    ['on', 'work', 'off']
    """
    patch.attach(model)
    try:
        yield model
    finally:
        patch.detach(model)
