"""The packages every block needs; imported before anything that needs them."""

from trialrun.core.extras import need

for _module in ("torch", "jaxtyping"):
    need(_module, extra="attention")
