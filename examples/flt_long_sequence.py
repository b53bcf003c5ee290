"""Linear attention that knows distances: read a long sequence at once, then token by token."""

import torch

from trialrun.attention.flt import FLTAttention, SpectralRPE


def main():
    """Attend causally over 4096 tokens, go on step by step, and look at the mask."""
    rpe = SpectralRPE(dim=1, kind="local", heads=4, scale=256.0)
    attn = FLTAttention(64, 4, rpe=rpe, features=128, causal=True).eval()
    x = torch.randn(1, 4096, 64, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        whole = attn(x)
        _, state = attn.prefill(x[:, :4000])
        for t in range(4000, 4096):
            y, state = attn.step(x[:, t], state)
        print("tokens read:", state.position, "numbers kept:", state.sums.total.numel())
        print(
            "the last step gives what the whole gives:", torch.allclose(y, whole[:, -1], atol=1e-4)
        )

        distance = torch.tensor([[0.0], [64.0], [2000.0]])
        print("mask at 0, 64 and 2000 tokens, first head:", rpe.mask(distance)[0].round(decimals=2))

    # Points in space: every token has coordinates, in units of the mask's scale.
    field = SpectralRPE(dim=3, kind="shift", heads=4, scale=1.0)
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(1))
    print("points:", tuple(FLTAttention(64, 4, rpe=field)(x[:, :50], points).shape))


if __name__ == "__main__":
    main()
