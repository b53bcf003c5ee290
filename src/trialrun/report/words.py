"""The report's vocabulary in English and Chinese, and rules in words."""

from __future__ import annotations

from collections.abc import Sequence

from trialrun.catalogue import Claim, Rule, Text
from trialrun.claims import judge
from trialrun.report.figures import plain_number

VERDICT_WORDS = {
    judge.HOLDS: Text("holds", "成立"),
    judge.DIRECTION_ONLY: Text("direction only", "仅方向成立"),
    judge.NOT_RESOLVED: Text("not resolved", "未能分辨"),
    judge.DOES_NOT_HOLD: Text("does not hold", "不成立"),
    judge.BROKEN_CHECK: Text("broken check", "检验失效"),
    judge.NOT_TESTED: Text("not tested", "未检验"),
}
VERDICT_MEANINGS = {
    judge.HOLDS: Text(
        "the whole interval satisfies the rule, and the control does not",
        "整个区间都满足规则，而对照不满足",
    ),
    judge.DIRECTION_ONLY: Text(
        "the sign is right, but the interval does not clear the margin",
        "方向正确，但区间没有越过规定的幅度",
    ),
    judge.NOT_RESOLVED: Text("these seeds cannot tell", "凭这些种子还分辨不出来"),
    judge.DOES_NOT_HOLD: Text(
        "the interval rules the claimed effect out", "区间已经排除了所声称的效果"
    ),
    judge.BROKEN_CHECK: Text(
        "the control passed too, so the check proves nothing",
        "对照也通过了，这项检验因此说明不了任何问题",
    ),
    judge.NOT_TESTED: Text(
        "no verdict was reached; the reason is given", "没有得出结论，原因见说明"
    ),
}
READ_WORDS = {
    "full text": Text("read in the paper's full text", "读自论文全文"),
    "code": Text("read in the authors' code", "读自作者代码"),
    "blog": Text("read in the author's blog", "读自作者博客"),
    "digest": Text("read in a digest", "读自论文简报"),
    "third party": Text("third-party summary of the paper", "读自第三方概述"),
    "memory": Text("from memory, not verified", "凭记忆，未核实"),
    "probe": Text("found by trying it", "由试运行得知"),
    "none": Text("no figure at hand", "手头没有可引用的数字"),
}
ROLE_WORDS = {
    "ours": Text("ours", "本方法"),
    "baseline": Text("baseline", "基线"),
    "rival": Text("rival", "简单对手"),
    "against": Text("compared with", "比较对象"),
    "control": Text("control", "对照"),
    "shown": Text("shown", "一并列出"),
}
QUANTITY_WORDS = {
    "paired_difference": Text("difference", "差值"),
    "noninferior": Text("difference", "差值"),
    "equivalent": Text("difference", "差值"),
    "ratio": Text("ratio", "比值"),
    "ordering": Text("step", "每一步"),
    "threshold": Text("value", "数值"),
}
RIVAL_WORDS = {
    "ahead": Text("ahead of {}", "领先于 {}"),
    "level": Text("level with {}", "与 {} 持平"),
    "behind": Text("behind {}", "落后于 {}"),
    "mixed": Text("mixed against {}", "与 {} 互有高下"),
}
CONTROL_FAILS = Text("fails, as it must", "未通过，理应如此")
CONTROL_PASSES = Text("PASSES: the check is broken", "竟然通过：检验失效")
AT_THIS_SCALE = Text("at this scale", "（在此规模下）")


def roles_of(claim: Claim, arm: str) -> tuple[str, ...]:
    """Return every part an arm plays in a claim, most telling first."""
    parts = {
        "ours": claim.ours,
        "baseline": claim.baseline,
        "rival": claim.rival,
        "control": claim.control,
    }
    found = tuple(role for role, name in parts.items() if name == arm)
    if not found:
        return ("against",) if arm == claim.rule.against else ("shown",)
    return found


def _comparison(claim: Claim) -> Text:
    rule, ours, other = claim.rule, claim.ours, claim.rule.against
    up = rule.direction == "higher"
    side = Text(*(("above", "高于") if up else ("below", "低于")))
    amount = plain_number(rule.margin)
    size = Text(f"{amount} {claim.unit.en}", f"{amount} {claim.unit.zh}")
    if rule.kind == "ratio":
        return Text(
            f"{ours} must be {side.en} {amount} times {other}",
            f"{ours} 须{side.zh} {other} 的 {amount} 倍",
        )
    if rule.kind == "threshold":
        return Text(f"{ours} must be {side.en} {size.en}", f"{ours} 须{side.zh} {size.zh}")
    if rule.kind == "equivalent":
        return Text(
            f"{ours} must differ from {other} by less than {size.en}, either way",
            f"{ours} 与 {other} 的差距须小于 {size.zh}，不论正负",
        )
    if rule.kind == "noninferior":
        return Text(
            f"{ours} must not be {'below' if up else 'above'} {other} by {size.en} or more",
            f"{ours} 不得比 {other} {'低' if up else '高'} {size.zh} 或更多",
        )
    if not rule.margin:
        return Text(f"{ours} must be {side.en} {other}", f"{ours} 须{side.zh} {other}")
    return Text(
        f"{ours} must be {side.en} {other} by more than {size.en}",
        f"{ours} 须{side.zh} {other}，且相差超过 {size.zh}",
    )


def _steps(claim: Claim) -> Text:
    rule, ours = claim.rule, claim.ours
    up = rule.direction == "higher"
    amount = plain_number(rule.margin)
    by = f", each time by more than {amount} {claim.unit.en}" if rule.margin else ""
    more = f"，且每步超过 {amount} {claim.unit.zh}" if rule.margin else ""
    return Text(
        f"{ours} must {'rise' if up else 'fall'} at every step along {', '.join(rule.points)}{by}",
        f"{ours} 沿 {'、'.join(rule.points)} 每一步都须{'上升' if up else '下降'}{more}",
    )


def rule_words(claim: Claim, *, seeds: int = 0, points: Sequence[str] = ()) -> Text:
    """Say a claim's rule as a sentence.

    Parameters
    ----------
    seeds : int
        How many seeds were run; 0 leaves the number out.
    points : sequence of str
        The points that were judged, where the rule does not name them itself.
    """
    rule = claim.rule
    if rule.kind == "ordering":
        said = _steps(claim)
    else:
        said = _comparison(claim)
        named = rule.points or (tuple(points) if len(points) > 1 else ())
        if named:
            at = ("at " if len(named) == 1 else "at each of ") + ", ".join(named)
            said = Text(f"{said.en}, {at}", f"{said.zh}，在 {'、'.join(named)} 处均须如此")
    level = plain_number(100 * rule.confidence)
    paired = rule.kind != "threshold"
    over = f"over {seeds} {'seed' if seeds == 1 else 'seeds'}" if seeds else "over seeds"
    if paired:
        over = "paired " + over
    if rule.resplit:
        over += ", widened because the seeds split one table anew"
    count = f"{seeds} 个种子" if seeds else ("按种子" if paired else "跨种子")
    return Text(
        f"{said.en}; the whole {level}\u00a0% interval, {over}",
        f"{said.zh}；整个 {level}\u00a0% 区间都须满足，{count}{'配对比较' if paired else ''}"
        f"{'；种子只是重新划分同一张表，区间因此加宽' if rule.resplit else ''}",
    )


def better_words(rule: Rule) -> Text:
    """Say which direction is better."""
    if rule.kind == "equivalent":
        return Text("closer is better", "越接近越好")
    if rule.direction == "higher":
        return Text("higher is better", "越高越好")
    return Text("lower is better", "越低越好")


def figure_words(claim: Claim) -> Text:
    """Return the paper's figure with where it was read, or that there is none."""
    read = READ_WORDS[claim.figure_read]
    if not claim.figure:
        return READ_WORDS["none"]
    return Text(f"{claim.figure} ({read.en})", f"{claim.figure}（{read.zh}）")


def point_words(rule: Rule, point: str) -> Text:
    """Return the name of a judged point; an ordering's points are steps."""
    worse, joint, better = point.partition(" to ")
    if rule.kind != "ordering" or not joint:
        return Text(point, point)
    return Text(point, f"{worse} 至 {better}")
