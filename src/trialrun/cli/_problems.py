"""What commands do with records that could not be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trialrun.claims.records import is_torn


def report_problems(problems: Sequence[str]) -> int:
    """Print each problem on the error stream; return 2 if one is more than a torn last line."""
    for problem in problems:
        print(f"trialrun: {problem}", file=sys.stderr)
    return 0 if all(is_torn(problem) for problem in problems) else 2
