"""A fingerprint of the code that produced a number.

It covers the dossier's ``claim.py``, every module of this package that it imports, directly or
not, apart from the engine around it, plus the rule, the arms and the judge. Comments, docstrings
and blank lines do not count, so that mending a sentence does not make a record stale.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from trialrun.catalogue import Card, Claim

_PACKAGE = "trialrun"
_JUDGES = ("trialrun.claims.judge", "trialrun.core.intervals")
_ENGINE = ("trialrun.claims", "trialrun.catalogue", "trialrun.cli", "trialrun.report")


def _source(module: str) -> str | None:
    node: Traversable = files(_PACKAGE)
    *parents, last = module.split(".")[1:] or [""]
    for part in parents:
        node = node / part
    candidates = [node / f"{last}.py", node / last / "__init__.py"] if last else []
    for candidate in candidates:
        if candidate.is_file():
            return candidate.read_text(encoding="utf-8")
    return None


def _imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Imports are absolute throughout; ruff refuses others.
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith(f"{_PACKAGE}.")}


def essential_text(source: str) -> str:
    """Return source without comments, docstrings, blank lines and trailing space.

    Examples
    --------
    >>> essential_text('x = 1  # why\\n\\n')
    'x = 1'
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            last = first.end_lineno or first.lineno
            for row in range(first.lineno - 1, last - 1):
                lines[row] = ""
            # Columns of the syntax tree count bytes. What follows on the line is code, and counts.
            rest = lines[last - 1].encode()[first.end_col_offset or 0 :].decode()
            lines[last - 1] = rest.lstrip(" ;")
    return "\n".join(line.rstrip() for line in lines if line.strip())


@cache
def _closure(start: tuple[str, ...]) -> tuple[str, ...]:
    todo, seen = list(start), set()
    while todo:
        module = todo.pop()
        source = _source(module)
        if module in seen or source is None:
            continue
        seen.add(module)
        wanted = _imports(source) - seen
        todo += [name for name in wanted if not name.startswith(_ENGINE)]
    return tuple(sorted(seen))


@cache
def _module_hash(module: str) -> str:
    return hashlib.sha256(essential_text(_source(module) or "").encode()).hexdigest()


def fingerprint(card: Card, claim: Claim) -> str:
    """Return 16 hexadecimal digits that change when the code behind a claim changes.

    Examples
    --------
    >>> from trialrun.catalogue import find_card
    >>> card = find_card("mbml")
    >>> len(fingerprint(card, card.claims[0]))
    16
    """
    modules = sorted({*_closure((f"trialrun.dossiers.{card.slug}.claim",)), *_JUDGES})
    digest = hashlib.sha256(repr((claim.id, claim.rule, claim.arms)).encode())
    for module in modules:
        digest.update(f"{module} {_module_hash(module)}\n".encode())
    return digest.hexdigest()[:16]
