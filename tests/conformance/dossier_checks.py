"""Checks of a dossier's words, of its claims against its card, and of the files beside it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.conformance.harness import NotApplicable, Specimen, require, written
from trialrun.catalogue import Card
from trialrun.claims.contract import Budget, Trial

QUESTIONS = {
    "en": ("What problem", "Related work", "How", "Experiments", "What is left", "Summary"),
    "zh": (
        "试图解决什么问题",
        "相关研究",
        "如何解决",
        "做了哪些实验",
        "有什么可以进一步探索",
        "总结",
    ),
}
_SHORTEST_ANSWER = {"en": 40, "zh": 15}
_BUDGETS = ("smoke", "quick", "full")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_UNSPOKEN = re.compile(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|https?://\S+", re.DOTALL)


def finished(card: Card) -> None:
    """The card has papers, entries, claims and what is not tested."""
    waiting = [text for text in (card.title, card.idea) if "待写" in text.zh]
    written(not waiting, "title and idea")
    written(card.papers, "papers")
    written(card.claims, "claims")
    written(card.not_tested, "not_tested")
    require(card.entry, f"{card.slug}: entry must not be empty")


def extras_exist(card: Card, root: Path) -> None:
    """Every extra that the card names can be installed."""
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    known = table["project"]["optional-dependencies"]
    missing = [extra for extra in card.extras if extra not in known]
    require(not missing, f"{card.slug}: no such extra: {', '.join(missing)}")


def one_specimen_per_entry(card: Card, specimens: Sequence[Specimen]) -> None:
    """Entries and specimens name one another, once each."""
    counted = Counter(s.entry for s in specimens)
    for entry in {*card.entry, *counted}:
        n, listed = counted[entry], entry in card.entry
        require(listed, f"{card.slug}: the specimen of {entry} has no entry in the card")
        require(n == 1, f"{card.slug}: {entry} needs one specimen, got {n}")


def _answers(text: str) -> dict[str, str]:
    parts = re.split(r"^## +(.+?)\s*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def notes_answer_the_questions(folder: Path, lang: str) -> None:
    """Notes have a title, a summary before the first question, and an answer to each question."""
    path = folder / f"notes.{lang}.md"
    written(path.is_file(), path.name)
    text = path.read_text(encoding="utf-8")
    answers = _answers(text)
    asked = [q for q in QUESTIONS[lang] if not any(h.startswith(q) for h in answers)]
    require(not asked, f"{path.name} lacks the heading {', '.join(asked)}")
    order = [next(i for i, h in enumerate(answers) if h.startswith(q)) for q in QUESTIONS[lang]]
    require(order == sorted(order), f"{path.name} asks the questions in another order")
    least = _SHORTEST_ANSWER[lang]
    opening = re.sub(r"^#.*$", "", text.partition("\n## ")[0], flags=re.MULTILINE)
    parts = {"summary": opening, **answers}
    empty = [part for part, text in parts.items() if len(text.strip()) < least]
    written(not empty, f"{path.name} ({', '.join(empty)})")


def _notes(folder: Path, lang: str) -> str:
    path = folder / f"notes.{lang}.md"
    if not path.is_file():
        raise NotApplicable(f"there is no {path.name}; notes_answer_the_questions says so")
    return path.read_text(encoding="utf-8")


def notes_point_to_the_verdicts(folder: Path, slug: str, lang: str) -> None:
    """Notes send the reader to what was measured."""
    text = _notes(folder, lang)
    written(f"trialrun show {slug}" in text, f"notes.{lang}.md: a pointer to trialrun show {slug}")


def chinese_share(text: str) -> float:
    """Return Chinese characters as a share of Chinese characters and Latin words.

    Code, formulas and addresses do not count.
    """
    spoken = _UNSPOKEN.sub(" ", text)
    chinese = len(_CHINESE.findall(spoken))
    latin = len(re.findall(r"[A-Za-z][A-Za-z'-]+", spoken))
    return chinese / max(1, chinese + latin)


def notes_are_in_their_language(folder: Path, lang: str) -> None:
    """Chinese notes are mostly Chinese, English notes have none of it."""
    text = _notes(folder, lang)
    share = chinese_share(text)
    if lang == "zh":
        require(share > 0.75, f"notes.zh.md is only {share:.0%} Chinese")
    else:
        require(share < 0.02, f"notes.en.md is {share:.0%} Chinese")


def card_is_bilingual(card: Card) -> None:
    """Every Chinese sentence of the card has Chinese in it, every English one none."""
    pairs = [card.title, card.idea]
    for claim in card.claims:
        pairs += [claim.title, claim.says, claim.paper_scale, claim.here_scale, claim.metric]
    for gap in card.not_tested:
        pairs += [gap.what, gap.why]
    pairs += [accepts.what for accepts in card.accepts]
    for pair in pairs:
        require(_CHINESE.search(pair.zh), f"{card.slug}: not Chinese: {pair.zh!r}")
        require(not _CHINESE.search(pair.en), f"{card.slug}: not English: {pair.en!r}")


def no_orphan_claims(card: Card, trial: Trial) -> None:
    """The card and ``claim.py`` name the same claims."""
    written(card.claims, "claims")
    ids = {claim.id for claim in card.claims}
    unmeasured, unsaid = sorted(ids - set(trial.arms)), sorted(set(trial.arms) - ids)
    require(not unmeasured, f"{card.slug}: claim.py does not measure {', '.join(unmeasured)}")
    require(not unsaid, f"{card.slug}: the card does not claim {', '.join(unsaid)}")


def no_orphan_arms(card: Card, trial: Trial, claim_id: str) -> None:
    """The card and ``claim.py`` name the same arms of a claim, each loadable by a worker."""
    claim, arms = card.claim(claim_id), trial.arms.get(claim_id, {})
    missing, extra = sorted(set(claim.arms) - set(arms)), sorted(set(arms) - set(claim.arms))
    require(not missing, f"{card.slug}: {claim_id} has no arm {', '.join(missing)} in claim.py")
    require(not extra, f"{card.slug}: the card does not name the arm {', '.join(extra)}")
    for name, arm in arms.items():
        require(_loadable(arm), f"{card.slug}: a worker cannot load the arm {claim_id}/{name}")


def _loadable(arm: Any) -> bool:
    while isinstance(arm, partial):
        arm = arm.func
    return bool(getattr(arm, "__qualname__", "<")) and "<" not in getattr(arm, "__qualname__", "<")


def preparations_are_used(card: Card, trial: Trial) -> None:
    """Arms need only preparations that exist, and every preparation is needed."""
    known = set(trial.arms) | {f"{c}/{a}" for c, arms in trial.arms.items() for a in arms}
    for key, names in trial.needs.items():
        require(key in known, f"{card.slug}: needs names {key}, which is no claim or arm")
        missing = [n for n in names if n not in trial.prepare]
        require(
            not missing, f"{card.slug}: {key} needs {', '.join(missing)}, which is not prepared"
        )
    used = {n for names in trial.needs.values() for n in names}
    idle = sorted(set(trial.prepare) - used)
    require(not idle, f"{card.slug}: nothing needs the preparation {', '.join(idle)}")


def budgets_exist(card: Card, trial: Trial) -> None:
    """Smoke, quick and full are there, with enough seeds to say something."""
    missing = [name for name in _BUDGETS if name not in trial.budgets]
    require(not missing, f"{card.slug} lacks the budget {', '.join(missing)}")
    kinds = {type(budget) for budget in trial.budgets.values()}
    require(len(kinds) == 1, f"{card.slug}: budgets are of {len(kinds)} classes, expected one")
    require(issubclass(kinds.pop(), Budget), f"{card.slug}: budgets must derive from Budget")
    seeds = {name: budget.seeds for name, budget in trial.budgets.items()}
    require(seeds["smoke"] >= 2, f"{card.slug}: smoke needs two seeds, got {seeds['smoke']}")
    require(seeds["full"] >= 5, f"{card.slug}: full needs five seeds, got {seeds['full']}")


def own_material_is_checked(card: Card, trial: Trial) -> None:
    """A card that takes the user's material comes with a check of it."""
    if card.accepts:
        require(trial.check_on, f"{card.slug} accepts material but claim.py has no check_on")


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def twin_shares_nothing(card: Card, root: Path) -> None:
    """The slow twin exists and imports nothing of the package, nor by way of another test file."""
    path = root / "tests" / "naive" / f"{card.slug}.py"
    written(path.is_file(), f"tests/naive/{card.slug}.py")
    source = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(source) if isinstance(n, ast.FunctionDef)]
    written(functions, f"tests/naive/{card.slug}.py: functions")
    shared = [
        name
        for name in _imported(path)
        if name.partition(".")[0] == "trialrun" or name.startswith(("tests.", ".", "importlib"))
    ]
    require(not shared, f"tests/naive/{card.slug}.py must import nothing of ours, got {shared[:2]}")


def twin_is_compared(card: Card, root: Path) -> None:
    """A test of the method imports the slow twin."""
    tests = sorted((root / "tests" / card.family).glob(f"test_{card.slug}*.py"))
    require(tests, f"tests/{card.family}/test_{card.slug}.py is missing")
    twin = f"tests.naive.{card.slug}"
    users = [p for p in tests if any(n == twin or n.startswith(f"{twin}.") for n in _imported(p))]
    require(users, f"no test in tests/{card.family}/test_{card.slug}*.py imports {twin}")


def benchmark_exists(card: Card, root: Path) -> None:
    """Speed is measured against what a user would pick instead."""
    path = root / "benchmarks" / f"bench_{card.slug}.py"
    written(path.is_file(), f"benchmarks/bench_{card.slug}.py")
