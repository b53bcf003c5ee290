"""The packages of the ``evaluation`` extra; imported before anything that needs them."""

from trialrun.core.extras import need

for _module in ("torch", "transformers", "jaxtyping"):
    need(_module, extra="evaluation")
