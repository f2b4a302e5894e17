"""The authors' forward passes, stated again in NumPy from reading their code; names are those of their files.

Images are (B, H, W, C) floats. Sources: microsoft/SPACH models/shiftvit.py; SHI-Labs/Compact-Transformers src/utils;
timm models/vision_transformer.py; google-research/vision_transformer vit_jax/models_vit.py; google-research/big_vision
models/vit.py; google-research/scenic projects/token_learner/model.py; Hugging Face transformers models/vit, dinov2.
"""

import math

import numpy as np
from scipy.special import erf


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, scale, bias, eps):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * scale + bias


def group_norm(x, weight, bias, eps=1e-5):
    """One group, maps (B, C, H, W)."""
    mean = x.mean((1, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight[:, None, None] + bias[:, None, None]


def windows(x, size, stride):
    """(B, C, H', W', size, size) of maps (B, C, H, W)."""
    found = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return found[:, :, ::stride, ::stride]


def conv(x, weight, bias=None, stride=1, padding=0):
    """PyTorch's Conv2d: weight (O, I, h, w), maps (B, C, H, W)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.einsum("bchwij,ocij->bohw", windows(x, weight.shape[2], stride), weight, optimize=True)
    return out if bias is None else out + bias[:, None, None]


def max_pool(x, size, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=-np.inf)
    return windows(x, size, stride).max((-1, -2))


def linear(x, w, name):
    """PyTorch's Linear."""
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def norm(x, w, name, eps):
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def tokens_of(x):
    """(B, C, H, W) to (B, H W, C)."""
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def spach(w, images, n_div):
    x = images.transpose(0, 3, 1, 2)
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = conv(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], patch)
    x = group_norm(x, w["patch_embed.norm.weight"], w["patch_embed.norm.bias"])
    s = 0
    while f"layers.{s}.blocks.0.norm2.weight" in w:
        i = 0
        while f"layers.{s}.blocks.{i}.norm2.weight" in w:
            name = f"layers.{s}.blocks.{i}"
            g = x.shape[1] // n_div
            out = np.zeros_like(x)
            out[:, :g, :, :-1] = x[:, :g, :, 1:]
            out[:, g : 2 * g, :, 1:] = x[:, g : 2 * g, :, :-1]
            out[:, 2 * g : 3 * g, :-1] = x[:, 2 * g : 3 * g, 1:]
            out[:, 3 * g : 4 * g, 1:] = x[:, 3 * g : 4 * g, :-1]
            out[:, 4 * g :] = x[:, 4 * g :]
            y = group_norm(out, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
            y = gelu(conv(y, w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"]))
            x = out + conv(y, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])
            i += 1
        if f"layers.{s}.downsample.norm.weight" in w:
            x = group_norm(x, w[f"layers.{s}.downsample.norm.weight"], w[f"layers.{s}.downsample.norm.bias"])
            x = conv(x, w[f"layers.{s}.downsample.reduction.weight"], None, 2)
        s += 1
    x = group_norm(x, w["norm.weight"], w["norm.bias"]).mean((2, 3))
    return linear(x, w, "head")


def torch_attention(x, w, name, heads, *, qkv="qkv", proj="proj", eps=1e-6):
    """timm's attention, which Compact-Transformers copied; with the norms of queries and keys where there are some."""
    b, n, c = x.shape
    q, k, v = linear(x, w, f"{name}.{qkv}").reshape(b, n, 3, heads, c // heads).transpose(2, 0, 3, 1, 4)
    if f"{name}.q_norm.weight" in w:
        q, k = norm(q, w, f"{name}.q_norm", eps), norm(k, w, f"{name}.k_norm", eps)
    weights = softmax(q @ k.swapaxes(-1, -2) * (c // heads) ** -0.5)
    return linear((weights @ v).transpose(0, 2, 1, 3).reshape(b, n, c), w, f"{name}.{proj}")


def compact_transformers(w, images, heads):
    x = images.transpose(0, 3, 1, 2)
    i = 0
    while f"tokenizer.conv_layers.{i}.0.weight" in w:
        weight = w[f"tokenizer.conv_layers.{i}.0.weight"]
        size = weight.shape[-1]
        if "tokenizer.conv_layers.0.0.bias" in w:  # ViT-Lite and CVT: stride = kernel, no activation, no pooling
            x = conv(x, weight, w["tokenizer.conv_layers.0.0.bias"], size)
        else:
            x = np.maximum(conv(x, weight, None, max(1, size // 2 - 1), max(1, size // 2)), 0)
            x = max_pool(x, 3, 2, 1)
        i += 1
    x = tokens_of(x)
    if "classifier.class_emb" in w:
        x = np.concatenate([np.broadcast_to(w["classifier.class_emb"], (len(x), 1, x.shape[-1])), x], 1)
    if "classifier.positional_emb" in w:
        x = x + w["classifier.positional_emb"]
    i = 0
    while f"classifier.blocks.{i}.norm1.weight" in w:
        name = f"classifier.blocks.{i}"
        x = x + torch_attention(norm(x, w, f"{name}.pre_norm", 1e-5), w, f"{name}.self_attn", heads)
        x = norm(x, w, f"{name}.norm1", 1e-5)
        x = x + linear(gelu(linear(x, w, f"{name}.linear1")), w, f"{name}.linear2")
        i += 1
    x = norm(x, w, "classifier.norm", 1e-5)
    if "classifier.class_emb" in w:
        x = x[:, 0]
    else:
        x = (softmax(linear(x, w, "classifier.attention_pool"), 1).swapaxes(-1, -2) @ x)[:, 0]
    return linear(x, w, "classifier.fc")


def timm(w, images, heads, *, no_embed_class=False, pool="token"):
    x = images.transpose(0, 3, 1, 2)
    x = tokens_of(
        conv(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], w["patch_embed.proj.weight"].shape[-1])
    )
    lead = [np.broadcast_to(w[n], (len(x), *w[n].shape[1:])) for n in ("cls_token", "reg_token") if n in w]
    if no_embed_class:
        x = np.concatenate([*lead, x + w["pos_embed"]], 1)
    else:
        x = np.concatenate([*lead, x], 1) + w["pos_embed"]
    prefix = sum(each.shape[1] for each in lead)
    i = 0
    while f"blocks.{i}.norm1.weight" in w:
        name = f"blocks.{i}"
        first, second = (w.get(f"{name}.ls{j}.gamma", w.get(f"{name}.gamma_{j}", 1.0)) for j in (1, 2))
        x = x + first * torch_attention(norm(x, w, f"{name}.norm1", 1e-6), w, f"{name}.attn", heads)
        y = linear(gelu(linear(norm(x, w, f"{name}.norm2", 1e-6), w, f"{name}.mlp.fc1")), w, f"{name}.mlp.fc2")
        x = x + second * y
        i += 1
    if "norm.weight" in w:
        x = norm(x, w, "norm", 1e-6)
    x = x[:, 0] if pool == "token" else x[:, prefix:].mean(1)
    if "fc_norm.weight" in w:
        x = norm(x, w, "fc_norm", 1e-6)
    if "pre_logits.fc.weight" in w:
        x = np.tanh(linear(x, w, "pre_logits.fc"))
    return linear(x, w, "head")


def dense(x, w, name):
    """Flax's Dense."""
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def flax_norm(x, w, name):
    return layer_norm(x, w[f"{name}/scale"], w[f"{name}/bias"], 1e-6)


def flax_attention(q, kv, w, name):
    def project(part, x):
        return np.einsum("bnc,chd->bhnd", x, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]

    query, key, value = project("query", q), project("key", kv), project("value", kv)
    mixed = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])) @ value
    return np.einsum("bhnd,hdc->bnc", mixed, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


def flax_mlp(x, w, name):
    return dense(gelu_tanh(dense(x, w, f"{name}/Dense_0")), w, f"{name}/Dense_1")


def flax_block(x, w, name, old=False):
    attention, second, mlp = (
        ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if old
        else ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    y = flax_norm(x, w, f"{name}/LayerNorm_0")
    x = x + flax_attention(y, y, w, f"{name}/{attention}")
    return x + flax_mlp(flax_norm(x, w, f"{name}/{second}"), w, f"{name}/{mlp}")


def flax_patches(w, images):
    kernel = w["embedding/kernel"]
    x = conv(images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), w["embedding/bias"], kernel.shape[0])
    return tokens_of(x)


def with_class(w, x):
    return np.concatenate([np.broadcast_to(w["cls"], (len(x), 1, x.shape[-1])), x], 1)


def vision_transformer(w, images, *, old=False):
    x = flax_patches(w, images)
    if "cls" in w:
        x = with_class(w, x)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    i = 0
    while f"Transformer/encoderblock_{i}/LayerNorm_0/scale" in w:
        x = flax_block(x, w, f"Transformer/encoderblock_{i}", old)
        i += 1
    x = flax_norm(x, w, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in w else x.mean(1)
    if "pre_logits/kernel" in w:
        x = np.tanh(dense(x, w, "pre_logits"))
    return dense(x, w, "head")


def sincos(height, width, channels):
    y, x = np.mgrid[:height, :width]
    omega = 1 / 10_000 ** (np.arange(channels // 4) / (channels // 4 - 1))
    y, x = np.outer(y.reshape(-1), omega), np.outer(x.reshape(-1), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)


def big_vision(w, images, pool):
    x = flax_patches(w, images)
    side = math.isqrt(x.shape[1])
    x = x + w.get("pos_embedding", sincos(side, side, x.shape[-1]))
    if pool == "tok":
        x = with_class(w, x)
    i = 0
    while f"Transformer/encoderblock_{i}/LayerNorm_0/scale" in w:
        x = flax_block(x, w, f"Transformer/encoderblock_{i}")
        i += 1
    x = flax_norm(x, w, "Transformer/encoder_norm")
    if pool == "map":
        probe = np.broadcast_to(w["MAPHead_0/probe"], (len(x), 1, x.shape[-1]))
        x = flax_attention(probe, x, w, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = (x + flax_mlp(flax_norm(x, w, "MAPHead_0/LayerNorm_0"), w, "MAPHead_0/MlpBlock_0"))[:, 0]
    else:
        x = x[:, 0] if pool == "tok" else x.mean(1)
    if "pre_logits/kernel" in w:
        x = np.tanh(dense(x, w, "pre_logits"))
    return dense(x, w, "head")


def same_conv(x, kernel):
    """Flax's 3x3 convolution with padding SAME, maps (B, H, W, C)."""
    return conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), None, 1, 1).transpose(0, 2, 3, 1)


def scenic_learner(x, w, i):
    if f"Transformer/TokenLearnerModuleV11_{i}/LayerNorm_0/scale" in w:
        name = f"Transformer/TokenLearnerModuleV11_{i}"
        maps = flax_mlp(flax_norm(x, w, f"{name}/LayerNorm_0"), w, f"{name}/token_masking")
        return np.einsum("bns,bnc->bsc", softmax(maps, 1), x)
    name = f"Transformer/TokenLearnerModule_{i}"
    side = math.isqrt(x.shape[1])
    y = flax_norm(x.reshape(len(x), side, side, -1), w, f"{name}/LayerNorm_0")
    for k in range(3):
        y = gelu_tanh(same_conv(y, w[f"{name}/Conv_{k}/kernel"]))
    y = sigmoid(same_conv(y, w[f"{name}/Conv_3/kernel"])).reshape(len(x), x.shape[1], -1)
    return np.einsum("bns,bnc->bsc", y, x)


def scenic_fuser(x, original, w, i):
    name = f"Transformer/TokenFuser_{i}"
    x = flax_norm(x, w, f"{name}/fuser_mix_norm1").transpose(0, 2, 1)
    x = flax_norm(dense(x, w, f"{name}/Dense_0").transpose(0, 2, 1), w, f"{name}/fuser_mix_norm2")
    mix = sigmoid(flax_mlp(flax_norm(original, w, f"{name}/LayerNorm_0"), w, f"{name}/token_masking"))
    return np.einsum("bsc,bns->bnc", x, mix)


def scenic(w, images, start, *, fuse=False):
    x = flax_patches(w, images) + w["Transformer/posembed_input/pos_embedding"]
    i = 0
    while f"Transformer/encoderblock_{i}/LayerNorm_0/scale" in w:
        block = f"Transformer/encoderblock_{i}"
        if fuse and i >= start:
            y = flax_block(scenic_learner(x, w, i - start), w, block)
            x = scenic_fuser(y, x, w, i - start) + x
        else:
            x = flax_block(scenic_learner(x, w, 0) if i == start else x, w, block)
        i += 1
    return dense(flax_norm(x, w, "Transformer/encoder_norm").mean(1), w, "output_projection")


def transformers(w, images, heads, eps):
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    bias = w["embeddings.patch_embeddings.projection.bias"]
    x = tokens_of(conv(images.transpose(0, 3, 1, 2), kernel, bias, kernel.shape[-1]))
    lead = [w[f"embeddings.{n}"] for n in ("cls_token", "distillation_token") if f"embeddings.{n}" in w]
    x = np.concatenate([*(np.broadcast_to(each, (len(x), *each.shape[1:])) for each in lead), x], 1)
    x = x + w["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in w:
        tokens = np.broadcast_to(w["embeddings.register_tokens"], (len(x), *w["embeddings.register_tokens"].shape[1:]))
        x = np.concatenate([x[:, :1], tokens, x[:, 1:]], 1)
    i = 0
    while f"encoder.layer.{i}.output.dense.weight" in w or f"encoder.layer.{i}.mlp.fc1.weight" in w:
        name = f"encoder.layer.{i}"
        dino = f"{name}.mlp.fc1.weight" in w
        y = norm(x, w, f"{name}.norm1" if dino else f"{name}.layernorm_before", eps)
        b, n, c = y.shape
        q, k, v = (
            linear(y, w, f"{name}.attention.attention.{part}").reshape(b, n, heads, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        y = (softmax(q @ k.swapaxes(-1, -2) / math.sqrt(c // heads)) @ v).transpose(0, 2, 1, 3).reshape(b, n, c)
        x = x + linear(y, w, f"{name}.attention.output.dense") * w.get(f"{name}.layer_scale1.lambda1", 1.0)
        y = norm(x, w, f"{name}.norm2" if dino else f"{name}.layernorm_after", eps)
        first, second = ("mlp.fc1", "mlp.fc2") if dino else ("intermediate.dense", "output.dense")
        y = linear(gelu(linear(y, w, f"{name}.{first}")), w, f"{name}.{second}")
        x = x + y * w.get(f"{name}.layer_scale2.lambda1", 1.0)
        i += 1
    x = norm(x, w, "layernorm", eps)[:, 0]
    return linear(x, w, "classifier") if "classifier.weight" in w else x


def distilled(w, images, heads):
    """DeiT's `DistilledVisionTransformer` (facebookresearch/deit, models.py) in evaluation: the mean of two heads.

    Both forward passes read the first token, so the tokens are exchanged for the second head: attention sees a set.
    """
    if "dist_token" in w:
        first = {**w, "reg_token": w["dist_token"]}
        table = w["pos_embed"]
        rows = np.concatenate([table[:, 1:2], table[:, :1], table[:, 2:]], 1)
        second = {**w, "cls_token": w["dist_token"], "reg_token": w["cls_token"], "pos_embed": rows}
        second |= {f"head.{leaf}": w[f"head_dist.{leaf}"] for leaf in ("weight", "bias")}
        return (timm(first, images, heads) + timm(second, images, heads)) / 2
    table = w["embeddings.position_embeddings"]
    rows = np.concatenate([table[:, 1:2], table[:, :1], table[:, 2:]], 1)
    second = {**w, "embeddings.position_embeddings": rows}
    second["embeddings.cls_token"] = w["embeddings.distillation_token"]
    second["embeddings.distillation_token"] = w["embeddings.cls_token"]
    found = []
    for name, arrays in (("cls_classifier", w), ("distillation_classifier", second)):
        arrays = {**arrays, **{f"classifier.{leaf}": w[f"{name}.{leaf}"] for leaf in ("weight", "bias")}}
        found.append(transformers(arrays, images, heads, 1e-12))
    return sum(found) / 2
