from dataclasses import replace

from trialrun.claims import fingerprint as prints


def test_comments_docstrings_and_blank_lines_do_not_count():
    plain = "def f(x):\n    return x + 1\n"
    dressed = (
        '"""Module."""\n\n# why\ndef f(x):\n    """Say.\n\n    More.\n    """\n\n'
        "    return x + 1  # sum\n"
    )
    assert prints.essential_text(dressed) == prints.essential_text(plain)


def test_code_after_a_docstring_on_its_line_counts():
    one = 'def f():\n    "doc"; return 1\n'
    assert prints.essential_text(one) != prints.essential_text(one.replace("1", "2"))
    assert prints.essential_text(one) == prints.essential_text(one.replace("doc", "dok"))


def test_code_and_strings_count():
    assert prints.essential_text("x = 1") != prints.essential_text("x = 2")
    assert prints.essential_text("x = '# a'") != prints.essential_text("x = '# b'")


def test_the_rule_counts(card, claim, monkeypatch):
    monkeypatch.setattr(prints, "_closure", lambda start: ())
    stricter = replace(claim, rule=replace(claim.rule, margin=2.0))
    assert prints.fingerprint(card, claim) == prints.fingerprint(card, replace(claim))
    assert prints.fingerprint(card, claim) != prints.fingerprint(card, stricter)


def test_the_title_does_not_count(card, claim, monkeypatch):
    monkeypatch.setattr(prints, "_closure", lambda start: ())
    reworded = replace(claim, title=replace(claim.title, en="another sentence"))
    assert prints.fingerprint(card, claim) == prints.fingerprint(card, reworded)


def test_modules_reached_through_others_count_and_the_engine_does_not(monkeypatch):
    sources = {
        "trialrun.dossiers.x.claim": (
            "from trialrun.sequence.m import f\nimport trialrun.claims.check"
        ),
        "trialrun.sequence.m": "def f():\n    from trialrun.blocks import late\n",
        "trialrun.blocks.late": "import os",
        "trialrun.claims.check": "1",
        "trialrun.sequence.unused": "2",
    }
    monkeypatch.setattr(prints, "_source", sources.get)
    prints._closure.cache_clear()
    assert prints._closure(("trialrun.dossiers.x.claim",)) == (
        "trialrun.blocks.late",
        "trialrun.dossiers.x.claim",
        "trialrun.sequence.m",
    )
    prints._closure.cache_clear()
