"""The packages under mcinfonce, imported first so that a missing one names its extra."""

from trialrun.core.extras import need

for _package in ("torch", "safetensors", "jaxtyping"):
    need(_package, extra="representation")
