"""Slow twin of ntkeval: one token, one draw, one prompt at a time, in plain loops.

p is the law of answers before a change and q after; c tells whether an answer is right.
"""

import math


def log_softmax(logits):
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits)) + top
    return [x - total for x in logits]


def answer_log_prob(next_logits, prompt, answer):
    """Sum log p(token | all before), reading the whole text anew for every token."""
    total = 0.0
    for i, token in enumerate(answer):
        total += log_softmax(next_logits(list(prompt) + list(answer[:i])))[token]
    return total


def draw(next_logits, prompt, uniforms, ends):
    """Draw tokens by the inverse of the distribution function until one ends the answer."""
    answer, total = [], 0.0
    for u in uniforms:
        logs = log_softmax(next_logits(list(prompt) + answer))
        running, token = 0.0, 0
        for token in range(len(logs)):
            running += math.exp(logs[token])
            if running > u:
                break
        answer.append(token)
        total += logs[token]
        if token in ends:
            break
    return tuple(answer), total


def all_answers(next_logits, prompt, most, ends, vocabulary):
    """Every answer there is, of at most ``most`` tokens, with its probability."""
    found = {}

    def go(begun, log):
        if begun and (begun[-1] in ends or len(begun) == most):
            found[tuple(begun)] = math.exp(log)
            return
        logs = log_softmax(next_logits(list(prompt) + begun))
        for token in range(vocabulary):
            go([*begun, token], log + logs[token])

    go([], 0.0)
    return found


def importance(log_p, log_q, c):
    total = 0.0
    for p, q, right in zip(log_p, log_q, c):
        total += (math.exp(q - p) - 1) * right
    return total / len(c)


def self_normalised(log_p, log_q, c):
    weights = [math.exp(q - p) for p, q in zip(log_p, log_q)]
    return sum(w * r for w, r in zip(weights, c)) / sum(weights) - sum(c) / len(c)


def independent(c_before, c_after):
    return sum(c_after) / len(c_after) - sum(c_before) / len(c_before)


def mixture(base, tuned):
    """Each of ``base`` and ``tuned`` is a list of (log p, log q, c)."""
    a = len(base) / (len(base) + len(tuned))
    total = 0.0
    for log_p, log_q, right in [*base, *tuned]:
        p, q = math.exp(log_p), math.exp(log_q)
        total += (q - p) / (a * p + (1 - a) * q) * right
    return total / (len(base) + len(tuned))


def effective_share(weights):
    return sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)


def mean_error(values):
    """Mean, and the standard error of the mean of independent values."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def specificity(kernel):
    """Mean of the diagonal less mean of the rest."""
    n = len(kernel)
    same = [kernel[i][i] for i in range(n)]
    other = [kernel[i][j] for i in range(n) for j in range(n) if i != j]
    return sum(same) / len(same) - sum(other) / len(other)


def two_way(kernel, factors):
    """Return the effects of a shared name and a shared form, by averaging over pairs of cells."""

    def gap(which):
        same, other = [], []
        for i, left in enumerate(factors):
            for j, right in enumerate(factors):
                (same if left[which] == right[which] else other).append(kernel[i][j])
        return sum(same) / len(same) - sum(other) / len(other)

    return gap(0), gap(1)
