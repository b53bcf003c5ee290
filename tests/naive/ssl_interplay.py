"""The slow twin of ssl_interplay.

Plain loops, the paper's symbols, nothing shared with the fast code: the loss as it is defined, and
its minimum by cutting the range of K, which the fast code does not do.
"""

import math

import numpy as np


def naive_gram(rows, gamma):
    """K[i][j] = exp(-gamma |x_i - x_j|^2)."""
    return [
        [math.exp(-gamma * sum((a - b) ** 2 for a, b in zip(x, y))) for y in rows] for x in rows
    ]


def naive_t(groups, distinct):
    """T[i][j]: the chance that the partner of view i is view j."""
    n = len(groups)
    t = [[0.0] * n for _ in range(n)]
    for i in range(n):
        partners = [j for j in range(n) if groups[j] == groups[i] and not (distinct and j == i)]
        for j in partners:
            t[i][j] = 1.0 / len(partners)
    return t


def naive_loss(psi, gram, coef, groups, beta, reg, distinct=False):
    """beta E|psi - psi'|^2 + |E psi psi^T - I|^2 + 2 reg sum |psi_i|_H^2, psi = K coef."""
    n, k = len(psi), len(psi[0])
    t = naive_t(groups, distinct)
    apart = 0.0
    for i in range(n):
        for j in range(n):
            apart += t[i][j] * sum((psi[i][a] - psi[j][a]) ** 2 for a in range(k)) / n
    spread = 0.0
    for a in range(k):
        for b in range(k):
            moment = sum(psi[i][a] * psi[i][b] for i in range(n)) / n
            spread += (moment - (1.0 if a == b else 0.0)) ** 2
    norm = 0.0
    for a in range(k):
        for i in range(n):
            for j in range(n):
                norm += coef[i][a] * gram[i][j] * coef[j][a]
    return beta * apart + spread + 2 * reg * norm


def naive_eigenvalues(gram, groups, beta, reg, distinct=False, center=False, cut=1e-12):
    """Return mu, largest first, of T_beta - reg N K^-1 on the range of K."""
    n = len(gram)
    k = np.array(gram)
    if center:
        h = np.eye(n) - np.ones((n, n)) / n
        k = h @ k @ h
    w, v = np.linalg.eigh(k)
    v, w = v[:, w > cut * w.max()], w[w > cut * w.max()]
    t = (1 - beta) * np.eye(n) + beta * np.array(naive_t(groups, distinct))
    m = v.T @ t @ v - reg * n * np.diag(1 / w)
    return np.sort(np.linalg.eigvalsh((m + m.T) / 2))[::-1]


def naive_vcreg_loss(first, second, beta, cross):
    """The mini-batch loss, pair by pair."""
    n, k = len(first), len(first[0])
    total = 0.0
    for i in range(n):
        total += beta * sum((a - b) ** 2 for a, b in zip(first[i], second[i])) / n

    def inside(i, a, b):
        moment = (first[i][a] * first[i][b] + second[i][a] * second[i][b]) / 2
        return moment - (1.0 if a == b else 0.0)

    half = n // 2
    if cross == "halves":
        pairs = [(i, j) for i in range(half) for j in range(half, n)]
    else:
        pairs = [(i, j) for i in range(n) for j in range(n) if cross == "plain" or i != j]
    for i, j in pairs:
        for a in range(k):
            for b in range(k):
                total += inside(i, a, b) * inside(j, a, b) / len(pairs)
    return total
