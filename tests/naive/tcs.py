"""The slow twin of tcs.

Plain loops, the paper's symbols, nothing shared with the fast code.
"""

import torch


def naive_tcs(x, gain):
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for c in range(x.shape[2]):
                y[b, t, c] = gain[c] * x[b, t, c]
    return y
