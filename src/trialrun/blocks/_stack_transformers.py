"""The packages of blocks built on transformers; imported before anything that needs them."""

from trialrun.core.extras import need

for _module in ("torch", "jaxtyping", "transformers"):
    need(_module, extra="attention")
