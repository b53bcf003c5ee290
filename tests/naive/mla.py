"""Multi-head latent attention by its equations, one number's worth at a time (deepseek2024v2).

Symbols: h a token, c its latent, k^R its rotated key, q^C and q^R the two parts of a head's query,
W^UK and W^UV a head's up-projections, R(p) the rotation by position p.
"""

import math

import torch


def naive_rotate(x, p, theta, interleave):
    """R(p) x: pair m turns by p theta^(-2m/dim); pairs are neighbours or lie half a width apart."""
    dim = len(x)
    out = list(x)
    for m in range(dim // 2):
        a, b = (2 * m, 2 * m + 1) if interleave else (m, m + dim // 2)
        angle = p * theta ** (-2 * m / dim)
        out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        out[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return torch.stack(out) if out else x


def naive_norm(x, gain, eps=1e-6):
    return x / torch.sqrt((x * x).mean() + eps) * gain


def naive_latent_attention(q_nope, q_rope, latent, rope_key, up, *, scale, padding=None):
    """o_i = W^UV sum_j softmax_j(scale (q^C_i . W^UK c_j + q^R_i . k^R_j)) c_j over j <= i."""
    batch, heads, queries, nope = q_nope.shape
    keys = latent.shape[1]
    value = up.shape[0] // heads - nope
    out = torch.zeros(batch, heads, queries, value, dtype=q_nope.dtype)
    for b in range(batch):
        real = [padding is None or bool(padding[b, j]) for j in range(keys)]
        for h in range(heads):
            rows = up[h * (nope + value) : (h + 1) * (nope + value)]
            w_uk, w_uv = rows[:nope], rows[nope:]
            for i in range(queries):
                here = keys - queries + i
                if not real[here]:
                    continue
                seen = [j for j in range(here + 1) if real[j]]
                scores = [
                    scale
                    * (
                        (q_nope[b, h, i] * (w_uk @ latent[b, j])).sum()
                        + (q_rope[b, h, i] * rope_key[b, j]).sum()
                    )
                    for j in seen
                ]
                weights = torch.stack(scores).softmax(0)
                out[b, h, i] = sum(a * (w_uv @ latent[b, j]) for a, j in zip(weights, seen))
    return out


def naive_mla(x, weights, *, heads, nope, rope, theta=1e4, interleave=False, padding=None):
    """One whole layer on (batch, time, width); ``weights`` by DeepSeek's names."""

    def linear(name, vector):
        out = weights[f"{name}.weight"] @ vector
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(name, vector):
        gain = weights.get(f"{name}.weight")
        return vector if gain is None else naive_norm(vector, gain)

    rank = weights["kv_b_proj.weight"].shape[1]
    value = weights["kv_b_proj.weight"].shape[0] // heads - nope
    rows = []
    for b in range(x.shape[0]):
        real = [padding is None or bool(padding[b, t]) for t in range(x.shape[1])]
        latents, keys, queries = [], [], []
        for t, h in enumerate(x[b]):
            p = max(0, sum(real[: t + 1]) - 1)
            down = linear("kv_a_proj_with_mqa", h)
            latents.append(norm("kv_a_layernorm", down[:rank]))
            keys.append(naive_rotate(down[rank:], p, theta, interleave))
            if "q_proj.weight" in weights:
                q = linear("q_proj", h)
            else:
                q = linear("q_b_proj", norm("q_a_layernorm", linear("q_a_proj", h)))
            q = q.reshape(heads, nope + rope)
            turned = [naive_rotate(one[nope:], p, theta, interleave) for one in q]
            queries.append((q[:, :nope], torch.stack(turned)))
        mixed = naive_latent_attention(
            torch.stack([q[0] for q in queries], 1)[None],
            torch.stack([q[1] for q in queries], 1)[None],
            torch.stack(latents)[None],
            torch.stack(keys)[None],
            weights["kv_b_proj.weight"],
            scale=(nope + rope) ** -0.5,
            padding=None if padding is None else padding[b : b + 1],
        )[0]
        if "kv_b_proj.bias" in weights:
            mixed = mixed + weights["kv_b_proj.bias"].reshape(heads, 1, -1)[..., nope:]
        each = mixed.transpose(0, 1).reshape(x.shape[1], heads * value)
        rows.append(torch.stack([linear("o_proj", one) for one in each]))
    return torch.stack(rows)
