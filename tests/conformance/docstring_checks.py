"""Checks of what a public entry says about itself."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from tests.conformance.harness import require, written
from tests.conformance.watch import global_states_kept
from trialrun.catalogue import Card

_OPENERS = {"a", "an", "the", "this", "these", "it", "class", "function", "module", "method"}
_VERBS_IN_S = {"bias", "focus", "canvas", "alias"}
_SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)


def sections(docstring: str) -> dict[str, str]:
    """Split a numpydoc docstring into its underlined sections."""
    found = list(_SECTION.finditer(docstring))
    ends = [m.start() for m in found[1:]] + [len(docstring)]
    return {m["title"]: docstring[m.end() : end] for m, end in zip(found, ends)}


def is_imperative(line: str) -> bool:
    """Tell whether a first line opens with a verb as in an order, and ends with a full stop.

    Examples
    --------
    >>> is_imperative("Return the mean."), is_imperative("Returns the mean.")
    (True, False)
    """
    word = re.match(r"[A-Z][a-z-]*", line)
    if word is None or not line.rstrip().endswith("."):
        return False
    first = word[0].lower()
    third_person = first.endswith("s") and not first.endswith("ss") and first not in _VERBS_IN_S
    return first not in _OPENERS and not third_person and not first.endswith("ing")


def public_methods(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield a class's own public methods, those of its private parents in this package too."""
    if not inspect.isclass(thing):
        return
    seen: set[str] = set()
    for owner in thing.__mro__:
        if not owner.__module__.startswith(thing.__module__.partition(".")[0] + "."):
            continue
        for name, member in vars(owner).items():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            plain = plain.fget if isinstance(plain, property) else plain
            if inspect.isfunction(plain) and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, plain


def _parameters(function: Any) -> list[str]:
    names = inspect.signature(function).parameters
    return [n for n in names if n not in ("self", "cls") and not n.startswith("_")]


def _doc(thing: Any, name: str) -> str:
    doc = inspect.getdoc(thing) if thing.__doc__ else None
    require(doc, f"{name} has no docstring")
    return doc or ""


def first_lines_are_imperative(thing: Any) -> None:
    """The entry and its public methods open with an order and a full stop."""
    for name, part in [(thing.__name__, thing), *public_methods(thing)]:
        line = _doc(part, name).split("\n\n")[0].replace("\n", " ")
        require(is_imperative(line), f"{name} must open with an order, got {line!r}")


def parameters_are_described(thing: Any) -> None:
    """Every setting stands in a Parameters section; a method names its arguments somewhere."""
    doc = _doc(thing, thing.__name__)
    described = sections(doc).get("Parameters", "")
    for name in _parameters(thing):
        known = re.search(rf"^\*{{0,2}}[\w, *]*\b{re.escape(name)}\b", described, re.MULTILINE)
        require(known, f"{thing.__name__} does not describe {name!r} under Parameters")
    for method, function in public_methods(thing):
        text = _doc(function, method) + doc
        for name in _parameters(function):
            require(
                re.search(rf"\b{re.escape(name)}\b", text),
                f"{thing.__name__}.{method} does not say what {name!r} is",
            )


def errors_are_described(thing: Any) -> None:
    """A Raises section says what is refused."""
    docs = [thing.__doc__ or "", *(f.__doc__ or "" for _, f in public_methods(thing))]
    raising = [sections(inspect.cleandoc(doc)).get("Raises", "") for doc in docs]
    require(any(text.strip() for text in raising), f"{thing.__name__} has no Raises section")


def examples_run(thing: Any) -> None:
    """The entry has an example, and all its examples give what they say."""
    module = sys.modules[thing.__module__]
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for t in finder.find(thing, thing.__name__, module=module) if t.examples]
    require(tests, f"{thing.__name__} has no runnable example")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    for test in tests:
        with global_states_kept(7):  # an example may build a host, which draws as it likes
            result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(
                test, out=said.append
            )
        require(not result.failed, f"the example of {test.name} fails: {''.join(said)[-600:]}")


def paper_is_named(card: Card, thing: Any) -> None:
    """A paper key of the card stands in the entry's docstring or its module's."""
    keys = [paper.key for paper in card.papers]
    written(keys, "papers")
    home = sys.modules[f"trialrun.{card.family}.{card.slug}"] if _has_home(card) else None
    texts = [thing.__doc__, sys.modules[thing.__module__].__doc__, home and home.__doc__]
    named = any(key in (text or "") for key in keys for text in texts)
    require(named, f"{thing.__name__} names none of {', '.join(keys)}")


def _has_home(card: Card) -> bool:
    return f"trialrun.{card.family}.{card.slug}" in sys.modules
