"""ReRoPE by the definition, one pair at a time (su2023rerope).

Symbols: w window, k slope, f(delta) the used distance, R(p) the rotation by position p.
"""

import math

import torch


def naive_distance(delta, w, k=None):
    if delta < w:
        return delta
    return w if k is None else w + (delta - w) / k


def naive_rotate(x, p, base=10000.0):
    """R(p) x, half-split: feature m turns with feature m + dim/2."""
    dim = len(x)
    out = list(x)
    for m in range(dim // 2):
        theta = p * base ** (-2 * m / dim)
        a, b = x[m], x[m + dim // 2]
        out[m] = a * math.cos(theta) - b * math.sin(theta)
        out[m + dim // 2] = b * math.cos(theta) + a * math.sin(theta)
    return torch.stack(out)


def naive_rerope(q, k, v, *, window, slope=None, positions=None, train_len=None, padding=None):
    """O[i] = sum_j softmax_j(q_i . R(f(i - j)) k_j / sqrt(d)) v_j, over real j at or before i."""
    batch, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    out = torch.zeros(batch, heads, queries, v.shape[3], dtype=q.dtype)
    for b in range(batch):
        real = [padding is None or bool(padding[b, j]) for j in range(keys)]
        place = [sum(real[:j]) for j in range(keys)] if positions is None else positions[b].tolist()
        for h in range(heads):
            g = h * kv_heads // heads
            for i in range(queries):
                here = keys - queries + i
                if not real[here]:
                    continue
                factor = 1.0
                if train_len is not None:
                    factor = max(1.0, math.log(place[here] + 1) / math.log(train_len))
                seen = [j for j in range(here + 1) if real[j]]
                scores = []
                for j in seen:
                    f = naive_distance(place[here] - place[j], window, slope)
                    turned = naive_rotate(q[b, h, i] * factor, f)
                    scores.append((turned * k[b, g, j]).sum() / math.sqrt(width))
                weights = torch.stack(scores).softmax(0)
                out[b, h, i] = sum(a * v[b, g, j] for a, j in zip(weights, seen))
    return out
