"""The slow twin of pic2word.

Plain loops, the paper's symbols, nothing shared with the fast code.
"""

import math

import torch


def naive_image_to_word(v, hidden, out):
    """The mapper on one embedding: (W, b) of each hidden layer, then (W, b) of the last."""
    for weight, bias in hidden:
        after = []
        for i in range(weight.shape[0]):
            total = bias[i]
            for j in range(weight.shape[1]):
                total = total + weight[i, j] * v[j]
            after.append(total.clamp(min=0))
        v = torch.stack(after)
    weight, bias = out
    rows = []
    for i in range(weight.shape[0]):
        total = bias[i]
        for j in range(weight.shape[1]):
            total = total + weight[i, j] * v[j]
        rows.append(total)
    return torch.stack(rows)


def naive_loss(v, p, tau):
    """Symmetric InfoNCE of pictures v and sentences p at temperature tau, in nats per pair."""
    n = len(v)
    v = [x / x.square().sum().sqrt() for x in v]
    p = [x / x.square().sum().sqrt() for x in p]
    total = torch.zeros((), dtype=v[0].dtype)
    for i in range(n):
        to_text = torch.stack([(v[i] * p[j]).sum() / tau for j in range(n)])
        to_picture = torch.stack([(p[i] * v[j]).sum() / tau for j in range(n)])
        for scores in (to_text, to_picture):
            top = scores.max()
            total = total + top + (scores - top).exp().sum().log() - scores[i]
    return total / (2 * n)


def naive_insert(ids, end, star):
    """Insert ``star`` where the text ends; the last id of the padding drops out."""
    place = list(ids).index(end)
    return [*ids[:place], star, *ids[place:]][: len(ids)], place


def naive_text_feature(clip, vectors, end):
    """A tiny CLIP's text tower on a list of word vectors, read at position ``end``."""
    x = [w + clip.positional_embedding[t] for t, w in enumerate(vectors)]
    for block in clip.transformer.resblocks:
        q, k, v = [], [], []
        for row in x:
            parts = block.qkv.weight @ _norm(row, block.ln_1) + block.qkv.bias
            width = len(row)
            q.append(parts[:width])
            k.append(parts[width : 2 * width])
            v.append(parts[2 * width :])
        size = len(x[0]) // block.heads
        mixed = []
        for t in range(len(x)):
            heads = []
            for h in range(block.heads):
                part = slice(h * size, (h + 1) * size)
                scores = [(q[t][part] @ k[s][part]) / math.sqrt(size) for s in range(t + 1)]
                weights = torch.stack(scores).softmax(0)
                heads.append(sum(weights[s] * v[s][part] for s in range(t + 1)))
            mixed.append(torch.cat(heads))
        x = [row + block.out.weight @ m + block.out.bias for row, m in zip(x, mixed)]
        y = []
        for row in x:
            inner = block.mlp[0].weight @ _norm(row, block.ln_2) + block.mlp[0].bias
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            y.append(row + block.mlp[2].weight @ inner + block.mlp[2].bias)
        x = y
    return _norm(x[end], clip.ln_final) @ clip.text_projection


def _norm(row, layer):
    mean = row.sum() / len(row)
    variance = (row - mean).square().sum() / len(row)
    return (row - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def naive_recall(scores, relevant, k, exclude=None):
    """Mean share of relevant items in the first k; in a tie what is wrong stands first."""
    total = 0.0
    for q in range(len(scores)):
        items = [i for i in range(len(scores[q])) if exclude is None or i != exclude[q]]
        order = sorted(items, key=lambda i: (-round(float(scores[q][i]), 6), relevant[q][i], i))
        right = [i for i in items if relevant[q][i]]
        total += sum(relevant[q][i] for i in order[:k]) / len(right)
    return total / len(scores)


def naive_map_at_r(scores, relevant, exclude=None):
    """Mean over queries of precision at each right place among the first R, over R."""
    total = 0.0
    for q in range(len(scores)):
        items = [i for i in range(len(scores[q])) if exclude is None or i != exclude[q]]
        order = sorted(items, key=lambda i: (-round(float(scores[q][i]), 6), relevant[q][i], i))
        r = sum(relevant[q][i] for i in items)
        found, precision = 0, 0.0
        for place, i in enumerate(order[:r], start=1):
            if relevant[q][i]:
                found += 1
                precision += found / place
        total += precision / r
    return total / len(scores)
