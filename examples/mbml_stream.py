"""Exact prediction of a stream that switches: which predictor pays least, and where it switched."""

import numpy as np

from trialrun.sequence.mbml import KT, LIN, PTW


def main():
    """Feed a stream symbol by symbol, compare code lengths, and find the switch."""
    rng = np.random.default_rng(0)
    stream = np.concatenate([rng.random(150) < 0.1, rng.random(90) < 0.85]).astype(int)

    ptw = PTW(depth=9)
    for symbol in stream:
        ptw.update(symbol)
    print("PTW's next-symbol distribution after the stream:", ptw.next().round(3))

    for predictor in (KT(), PTW(depth=9), LIN()):
        bits = -predictor.log_prob(stream[None]).item() / np.log(2)
        print(f"{type(predictor).__name__:<4} needs {bits:6.1f} bits for {len(stream)} symbols")

    # Position 0 begins the first segment, so its posterior is 1 by definition.
    posterior = LIN().switch_posterior(stream[None])[0]
    print("likeliest switch before symbol", 1 + int(np.argmax(posterior[1:])), "(true: 150)")


if __name__ == "__main__":
    main()
