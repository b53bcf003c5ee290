"""Cards written as TOML and records judged by the real judge, from made-up values."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from trialrun.catalogue import Card, parse_card
from trialrun.claims.fingerprint import fingerprint
from trialrun.claims.judge import judge
from trialrun.claims.records import Record, plain_judgement, sealed

HEAD = """
slug = "{slug}"
family = "shift"
kind = "estimator"
digest = "002"
entry = ["trialrun.shift.{slug}:Thing"]
extras = ["shift"]
[title]
en = "{title}"
zh = "{title_zh}"
[idea]
en = "One head per domain, weighted by how the domains relate."
zh = "每个域一个预测头，按域之间的关系加权。"
[[papers]]
key = "someone2023thing"
title = "A thing & its <other>"
authors = "S. Omeone and others"
year = 2023
id = "arXiv:2302.02609"
read = "digest"
[[not_tested]]
[not_tested.what]
en = "The paper's own four data sets."
zh = "论文自用的四个数据集。"
[not_tested.why]
en = "No package ships them."
zh = "没有软件包附带这些数据。"
[[sources]]
name = "our own generator"
licence = "Apache-2.0"
where = "src/trialrun/material/ring.py"
"""

CLAIM = """
[[claims]]
id = "{id}"
ours = "ours"
baseline = "plain"
rival = "rival"
control = "shuffled"
shown = {shown}
figure = "{figure}"
figure_read = "{read}"
[claims.title]
en = "{title}"
zh = "按域关系加权，胜过直接平均"
[claims.says]
en = "The paper states that weighting the functions by relation generalises better."
zh = "论文称：按关系给各域的函数加权，在没见过的域上泛化得更好。"
[claims.paper_scale]
en = "Five data sets, wide encoders."
zh = "五个数据集，大型编码器。"
[claims.here_scale]
en = "Ring worlds of 15 domains and a small two-layer network."
zh = "15 个域的环形世界，两层小网络。"
[claims.rule]
kind = "{kind}"
metric = "{metric}"
unit = "points"
direction = "{direction}"
margin = {margin}
{more}
"""

AGAINST = 'against = "plain"'
RULES = {
    "paired_difference": (2.0, "higher", AGAINST),
    "ratio": (0.95, "lower", AGAINST),
    "noninferior": (1.0, "higher", AGAINST),
    "equivalent": (1.5, "higher", AGAINST),
    "ordering": (0.5, "higher", 'points = ["16", "64", "256"]'),
    "threshold": (50.0, "higher", ""),
}


def claim_toml(kind: str = "paired_difference", **changes: str) -> str:
    """Return one claim's TOML, called after its rule unless an ``id`` is given."""
    margin, direction, more = RULES[kind]
    words = {
        "id": kind.replace("_", "-"),
        "title": "Weighting the heads by relation beats averaging them",
        "shown": '["nearest"]',
        "figure": "+3 to 4 points on average over five tasks",
        "read": "digest",
        "kind": kind,
        "metric": "mean over held-out domains of accuracy",
        "direction": direction,
        "margin": str(margin),
        "more": more,
    }
    return CLAIM.format(**{**words, **changes})


def make_card(
    *claims: str, slug: str = "thing", title: str = "Thing: a method", title_zh: str = "某方法"
) -> Card:
    """Return a card with the given claims' TOML, or one claim of every rule."""
    head = HEAD.format(slug=slug, title=title, title_zh=title_zh)
    return parse_card(head + "".join(claims or map(claim_toml, RULES)))


MEANS = {"ours": 71.0, "plain": 64.0, "rival": 69.5, "shuffled": 64.0, "nearest": 60.0}


def make_arms(
    means: Mapping[str, float | Sequence[float]] = MEANS,
    *,
    points: Sequence[str] = ("value",),
    seeds: int = 5,
    spread: float = 0.4,
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """Return values around the means, with a share common to all arms of one seed."""
    draw = random.Random(seed)
    shared = [draw.gauss(0, 3 * spread) for _ in range(seeds)]
    arms = {}
    for arm, mean in means.items():
        centres = [mean] * len(points) if isinstance(mean, int | float) else mean
        arms[arm] = {
            point: [centre + s + draw.gauss(0, spread) for s in shared]
            for point, centre in zip(points, centres, strict=True)
        }
    return arms


def make_record(
    card: Card,
    claim_id: str,
    arms: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    **changes: object,
) -> Record:
    """Return a sealed record of a claim, judged by its rule."""
    claim = card.claim(claim_id)
    arms = arms if arms is not None else make_arms()
    judged = judge(claim, arms)
    seeds = len(next(iter(next(iter(arms.values())).values())))
    table = {
        name: {"points": points, "n": 600, "extra": {"worst": [1.0] * seeds}, "seconds": 4.2}
        for name, points in arms.items()
    }
    record = {
        "format": 1,
        "slug": card.slug,
        "claim": claim_id,
        "budget": "quick",
        "seeds": list(range(seeds)),
        "verdict": judged.verdict,
        "reason": "",
        "arms": table,
        "judgement": plain_judgement(judged),
        "unit_seconds": 41.7,
        "run_seconds": 25.0,
        "peak_megabytes": 640.4,
        "device": "cpu",
        "engine": "local",
        "machine": {
            "processor": "Some Processor 3000",
            "cores": 2,
            "system": "Linux x86_64",
            "python": "3.12.0",
        },
        "versions": {"trialrun": "0.1.0", "numpy": "2.4.0"},
        "commit": "0123456789ab",
        "fingerprint": fingerprint(card, claim),
        "on": None,
        "model": None,
        "finished": "2026-11-20T10:00:00+00:00",
    }
    return sealed({**record, **changes})
