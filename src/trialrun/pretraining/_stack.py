"""The packages that training takes from the ``pretraining`` extra; the data pipeline needs none."""

from trialrun.core.extras import need

for _module in ("torch", "jaxtyping", "safetensors", "transformers", "accelerate"):
    need(_module, extra="pretraining")
