"""The packages under mla, imported first so that a missing one names its extra."""

from trialrun.core.extras import need

for _package in ("torch", "transformers", "jaxtyping"):
    need(_package, extra="attention")
