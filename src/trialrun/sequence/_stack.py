"""The packages of the ``sequence`` extra; imported before anything that needs them."""

from trialrun.core.extras import need

for _module in ("torch", "jaxtyping", "safetensors"):
    need(_module, extra="sequence")
