"""Layers in plain numpy, written from their formulas: what tests compare with."""

import math

import numpy as np


def norm(p, x, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(p, x, qk_eps=None):
    out = np.zeros_like(x, dtype=np.float64) + p["out"]["bias"]
    for b in range(x.shape[0]):
        for head in range(p["query"]["kernel"].shape[1]):
            q, k, v = (
                x[b] @ p[n]["kernel"][:, head] + (p[n]["bias"][head] if "bias" in p[n] else 0)
                for n in ("query", "key", "value")
            )
            if qk_eps:
                q, k = norm(p["norm_query"], q, qk_eps), norm(p["norm_key"], k, qk_eps)
            for i in range(x.shape[1]):
                scores = np.exp([q[i] @ k[j] / math.sqrt(q.shape[-1]) for j in range(x.shape[1])])
                mixed = sum(w * v[j] for j, w in enumerate(scores / scores.sum()))
                out[b, i] += mixed @ p["out"]["kernel"][head]
    return out


def mlp(p, x, twice):
    x = gelu(x @ p["dense_0"]["kernel"] + p["dense_0"]["bias"]) @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]
    return gelu(x) if twice else x
