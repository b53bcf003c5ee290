"""The slow twin of famnet.

Plain loops, the paper's symbols, nothing shared with the fast code. Features are brought up to the
mask's size here, and the transform is a sum over all frequencies.
"""

import cmath
import math

import torch


def naive_resize(f, rows, columns):
    """Bilinear, corners not aligned: f (C, h, w) to (C, rows, columns)."""
    _, h, w = f.shape
    out = torch.zeros(f.shape[0], rows, columns, dtype=f.dtype)
    for i in range(rows):
        y = min(max((i + 0.5) * h / rows - 0.5, 0.0), h - 1.0)
        i0 = math.floor(y)
        i1 = min(i0 + 1, h - 1)
        for j in range(columns):
            x = min(max((j + 0.5) * w / columns - 0.5, 0.0), w - 1.0)
            j0 = math.floor(x)
            j1 = min(j0 + 1, w - 1)
            top = (1 - (x - j0)) * f[:, i0, j0] + (x - j0) * f[:, i0, j1]
            bottom = (1 - (x - j0)) * f[:, i1, j0] + (x - j0) * f[:, i1, j1]
            out[:, i, j] = (1 - (y - i0)) * top + (y - i0) * bottom
    return out


def naive_tokens(f, mask, n):
    """Foreground pixels in raster order, pooled to n columns: (C, n)."""
    big = naive_resize(f, *mask.shape)
    pixels = [big[:, i, j] for i in range(len(mask)) for j in range(len(mask[0])) if mask[i, j]]
    if not pixels:
        pixels = [torch.zeros(len(f), dtype=f.dtype)]
    columns = []
    for t in range(n):
        first = (t * len(pixels)) // n
        last = math.ceil((t + 1) * len(pixels) / n)
        columns.append(sum(pixels[first:last]) / (last - first))
    return torch.stack(columns, dim=1)


def naive_band_masks(rows, columns, r):
    radius = math.sqrt((rows / 2) ** 2 + (columns / 2) ** 2)
    masks = [[[0.0] * columns for _ in range(rows)] for _ in range(3)]
    for i in range(rows):
        for j in range(columns):
            d = math.sqrt((i - rows // 2) ** 2 + (j - columns // 2) ** 2)
            band = 0 if d <= r * radius else 2 if d >= (1 - r) * radius else 1
            masks[band][i][j] = 1.0
    return masks


def naive_bands(square, r):
    """Split one plane (rows, columns) by the sum over all its frequencies."""
    rows, columns = square.shape
    masks = naive_band_masks(rows, columns, r)
    bands = [torch.zeros(rows, columns, dtype=square.dtype) for _ in range(3)]
    for u in range(rows):
        for v in range(columns):
            band = next(b for b in range(3) if masks[b][u][v])
            ku, kv = u - rows // 2, v - columns // 2
            wave = torch.tensor(
                [
                    [cmath.exp(2j * math.pi * (ku * i / rows + kv * j / columns))
                     for j in range(columns)]
                    for i in range(rows)
                ],
                dtype=torch.complex128,
            )  # fmt: skip
            weight = (square * wave.conj()).sum()
            bands[band] = bands[band] + (weight * wave).real / (rows * columns)
    return bands


def naive_token_bands(tokens, r):
    """Fold (C, n) into a padded square per channel, split, unfold: three of (C, n)."""
    channels, n = tokens.shape
    side = math.ceil(math.sqrt(n))
    out = [torch.zeros(channels, n, dtype=tokens.dtype) for _ in range(3)]
    for c in range(channels):
        flat = torch.cat([tokens[c], torch.zeros(side * side - n, dtype=tokens.dtype)])
        for b, band in enumerate(naive_bands(flat.reshape(side, side), r)):
            out[b][c] = band.reshape(-1)[:n]
    return out


def _mlp(x, a1, b1, a2, b2):
    hidden = [(a1[k] * x).sum() + b1[k] for k in range(len(a1))]
    hidden = torch.stack([h if h > 0 else 0 * h for h in hidden])
    out = [(a2[k] * hidden).sum() + b2[k] for k in range(len(a2))]
    return torch.stack([o if o > 0 else 0 * o for o in out])


def naive_matching(fs, fq, weights, how):
    """One band: fs, fq (C, N) to (C, 2N)."""
    channels, n = fs.shape
    rows = []
    sims = []
    for t in range(n):
        s, q = fs[:, t], fq[:, t]
        norms = float(s.detach().norm() * q.detach().norm())
        cosine = (s * q).sum() / (s.norm() * q.norm()) if norms > 0 else (s * q).sum()
        sim = 1 / (1 + torch.exp(-cosine))
        sims.append(sim if how == "sim" else 1 - sim)
    for c in range(channels):
        s = _mlp(fs[c], *weights["spt"]) * torch.stack(sims)
        q = _mlp(fq[c], *weights["qry"]) * torch.stack(sims)
        rows.append(_mlp(torch.cat([s, q]), *weights["fusion"]))
    return torch.stack(rows)


def naive_fam(fs, ms, fq, mq, n, r, weights, order=("1-sim", "sim", "1-sim")):
    """The whole matching of one image: low, middle, high, each (C, 2N)."""
    bands_s = naive_token_bands(naive_tokens(fs, ms, n), r)
    bands_q = naive_token_bands(naive_tokens(fq, mq, n), r)
    return [naive_matching(s, q, weights, how) for s, q, how in zip(bands_s, bands_q, order)]


def _attention(asking, told, wq, bq, wk, bk, wv, bv):
    """(C, T) each; one head, scale 1 / sqrt(C)."""
    channels, count = asking.shape
    out = []
    for t in range(count):
        q = wq @ asking[:, t] + bq
        scores = [(q * (wk @ told[:, u] + bk)).sum() / math.sqrt(channels) for u in range(count)]
        top = max(float(s) for s in scores)
        powers = [torch.exp(s - top) for s in scores]
        total = sum(powers)
        out.append(sum(p / total * (wv @ told[:, u] + bv) for u, p in enumerate(powers)))
    return torch.stack(out, dim=1)


def naive_msf(low, middle, high, first, second):
    fused = _attention(middle, low, *first) + middle + _attention(middle, high, *second)
    return torch.where(fused > 0, fused, 0 * fused)


def naive_prototype(f, mask):
    big = naive_resize(f, *mask.shape)
    total = torch.zeros(len(f), dtype=f.dtype)
    weight = 0.0
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            total = total + big[:, i, j] * mask[i, j]
            weight += float(mask[i, j])
    return total / (weight + 1e-5)


def naive_map(f, prototype, tau):
    """Foreground probability at the features' own size: (h, w)."""
    rows = []
    for i in range(f.shape[1]):
        row = []
        for j in range(f.shape[2]):
            v = f[:, i, j]
            s = -20 * (v * prototype).sum() / (v.norm() * prototype.norm())
            row.append(1 - 1 / (1 + torch.exp(-0.5 * (s - tau))))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def naive_loss(pred, coarse, truth, w0=0.1, w1=1.0):
    """pred, coarse (2, H, W); truth (H, W) of 0, 1, 255."""
    out = 0.0
    for map_ in (pred, coarse):
        total, weight = 0.0, 0.0
        for i in range(truth.shape[0]):
            for j in range(truth.shape[1]):
                y = int(truth[i, j])
                if y == 255:
                    continue
                w = w1 if y else w0
                total = total - w * torch.log(map_[y, i, j])
                weight += w
        out = out + total / weight
    return out


def naive_felzenszwalb(volume, scale, min_size):
    """Labels by the graph method, components as sets, edges of six neighbours."""
    places = [
        (z, y, x)
        for z in range(volume.shape[0])
        for y in range(volume.shape[1])
        for x in range(volume.shape[2])
    ]
    edges = []
    for axis in range(3):
        for p in places:
            q = tuple(v + (a == axis) for a, v in enumerate(p))
            if all(v < s for v, s in zip(q, volume.shape)):
                edges.append((abs(float(volume[p]) - float(volume[q])), p, q))
    edges.sort(key=lambda e: e[0])
    of = {p: {p} for p in places}
    inner = dict.fromkeys(places, 0.0)

    def join(p, q):
        both = of[p] | of[q]
        for member in both:
            of[member] = both
        return both

    for w, p, q in edges:
        if of[p] is of[q]:
            continue
        limits = [max(inner[m] for m in of[x]) + scale / len(of[x]) for x in (p, q)]
        if w <= min(limits):
            for member in join(p, q):
                inner[member] = w
    for _, p, q in edges:
        if of[p] is not of[q] and min(len(of[p]), len(of[q])) < min_size:
            join(p, q)
    return of
