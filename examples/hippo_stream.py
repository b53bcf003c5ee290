"""Remember a stream of any length in 64 numbers, then run one S4D layer whole and step by step."""

import torch

from trialrun.sequence.hippo import S4D, HiPPO


def main():
    """Write a signal at two sampling rates, read it back, and compare two ways to run a layer."""
    memory = HiPPO("legs", order=64)
    states = {}
    for samples in (1000, 4000):
        time = (torch.arange(samples) + 0.5) / samples
        signal = torch.sin(20 * time) + 0.5 * torch.cos(33 * time)
        state = memory.encode(signal[None])
        error = (memory.reconstruct(state)[0] - signal).abs().max()
        print(f"{samples} samples in 64 numbers, largest error {error:.3f}")
        states[samples] = state.coefficients
    change = (states[4000] - states[1000]).norm() / states[1000].norm()
    print(f"four times the samples change the memory by {100 * change:.1f} %")

    layer = S4D(d_model=8, d_state=16)
    x = torch.randn(1, 500, 8, generator=torch.Generator().manual_seed(0))
    whole = layer(x)
    state, steps = None, []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        steps.append(y)
    same = torch.allclose(torch.stack(steps, dim=1), whole, atol=1e-4)
    print("whole sequence and single steps agree:", same)


if __name__ == "__main__":
    with torch.no_grad():
        main()
