"""Slow twins of trialrun.sequence.mbml: plain loops and recursions, the papers' symbols."""

import math
from itertools import product


def kt(past, symbols, alpha=0.5):
    """Next-symbol probabilities of the Krichevsky-Trofimov estimator."""
    return [(past.count(s) + alpha) / (len(past) + symbols * alpha) for s in range(symbols)]


def kt_weight(x, symbols, alpha=0.5):
    weight = 1.0
    for t in range(len(x)):
        weight *= kt(x[:t], symbols, alpha)[x[t]]
    return weight


def kt_window(past, window, symbols, alpha=0.5):
    return kt(past[-window:], symbols, alpha)


def ptw_weight(x, depth, symbols, alpha=0.5):
    """W_D(x) = KT(x)/2 + W_{D-1}(first half) W_{D-1}(second half)/2."""
    if not x:
        return 1.0
    one = kt_weight(x, symbols, alpha)
    if depth == 0:
        return one
    half = 2 ** (depth - 1)
    left = ptw_weight(x[:half], depth - 1, symbols, alpha)
    right = ptw_weight(x[half:], depth - 1, symbols, alpha)
    return 0.5 * one + 0.5 * left * right


def ptw(past, depth, symbols, alpha=0.5):
    whole = ptw_weight(past, depth, symbols, alpha)
    return [ptw_weight([*past, s], depth, symbols, alpha) / whole for s in range(symbols)]


def ptw_partitions(depth):
    """Every partition of 2**depth steps as (prior weight, starts)."""
    if depth == 0:
        return [(1.0, [0])]
    half = 2 ** (depth - 1)
    parts = ptw_partitions(depth - 1)
    split = [
        (0.5 * a * b, left + [half + s for s in right]) for a, left in parts for b, right in parts
    ]
    return [(0.5, [0]), *split]


def lin_prior(starts, length, *, life=None):
    """Prior of a segmentation of ``length`` steps; zero if a segment outlives ``life(start)``."""
    weight = 1.0
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        last = stop == length
        for n in range(1, stop - start):
            weight *= 1 - 0.5 / n
        if not last:
            weight *= 0.5 / (stop - start)
        if life is not None and stop - start > life(start) + last:
            return 0.0
    return weight


def segmentations(length):
    """Every set of starts of segments of ``length`` steps."""
    for cuts in product([False, True], repeat=length - 1):
        yield [0] + [t for t, cut in enumerate(cuts, start=1) if cut]


def segmented_weight(x, starts, symbols, alpha=0.5):
    stops = [*starts[1:], len(x)]
    weight = 1.0
    for start, stop in zip(starts, stops, strict=True):
        weight *= kt_weight(x[start:stop], symbols, alpha)
    return weight


def lin_weight(x, symbols, alpha=0.5, *, life=None):
    return sum(
        lin_prior(starts, len(x), life=life) * segmented_weight(x, starts, symbols, alpha)
        for starts in segmentations(len(x))
    )


def lin(x, symbols, alpha=0.5):
    """Next-symbol probabilities at every t, by Willems' forward recursion over starts."""
    born, out = [1.0], []
    for t in range(len(x)):
        if t:
            born.append(
                sum(
                    born[h] * kt_weight(x[h:t], symbols, alpha) * survives(t - h) * 0.5 / (t - h)
                    for h in range(t)
                )
            )
        joint = [0.0] * symbols
        for h in range(t + 1):
            weight = born[h] * kt_weight(x[h:t], symbols, alpha) * survives(t - h + 1)
            for s, chance in enumerate(kt(x[h:t], symbols, alpha)):
                joint[s] += weight * chance
        out.append([j / sum(joint) for j in joint])
    return out


def survives(n):
    """Probability that a segment has an n-th symbol."""
    return math.prod(1 - 0.5 / m for m in range(1, n))


def relative_scores(q, k, r, u, v):
    """Scores of one head: ((q_i + u) . k_j + (q_i + v) . r_{i-j}) / sqrt(d), for j <= i."""
    time, width = len(q), len(q[0])
    scores = [[-math.inf] * time for _ in range(time)]
    for i in range(time):
        for j in range(i + 1):
            total = 0.0
            for d in range(width):
                total = total + (q[i][d] + u[d]) * k[j][d] + (q[i][d] + v[d]) * r[i - j][d]
            scores[i][j] = total / math.sqrt(width)
    return scores
