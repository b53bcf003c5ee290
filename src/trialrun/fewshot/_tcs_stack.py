"""The packages under tcs, imported first so that a missing one names its extra."""

from trialrun.core.extras import need

for _package in ("torch", "sklearn", "safetensors", "jaxtyping"):
    need(_package, extra="fewshot")
