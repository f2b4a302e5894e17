"""The nine models in PyTorch.

Written for speed with standard PyTorch means: one projection for query, key and value, `scaled_dot_product_attention`,
channels-last convolutions. Modules are named as in jaxvit's parameter tree.

The models map normalized float images (B, C, H, W), best in channels-last memory, to float32 logits. Lower precision
comes from `torch.autocast`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_relu = F.relu
_exact_gelu = partial(F.gelu, approximate="none")
_tanh_gelu = partial(F.gelu, approximate="tanh")


class Positions(nn.Module):
    """Adds learned position embeddings to tokens (B, N, C)."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(tokens, dim).uniform_(-0.05, 0.05))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class ConvEmbed(nn.Module):
    """Patch embedding (B, N, dim) by a strided convolution."""

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)


class DenseEmbed(nn.Module):
    """Patch embedding by reshaping, a norm if `epsilon` is given, and a dense layer."""

    def __init__(self, channels: int, dim: int, patch: int, epsilon: float | None = None):
        super().__init__()
        self.patch = patch
        values = patch * patch * channels
        self.norm = nn.Identity() if epsilon is None else nn.LayerNorm(values, eps=epsilon)
        self.projection = nn.Linear(values, dim)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        x = images[:, :, : rows * p, : columns * p].reshape(batch, channels, rows, p, columns, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, p * p * channels)
        return self.projection(self.norm(x))


class Attention(nn.Module):
    """Self-attention; `dropout` applies to the attention weights."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """MLP on the last axis: dense, activation, dense; `twice` = also an activation after the second dense layer."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor], *, twice: bool, dropout: float):
        super().__init__()
        self.activation, self.twice, self.dropout = activation, twice, dropout
        self.dense_0, self.dense_1 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.activation(self.dense_0(x)), self.dropout, self.training)
        x = self.dense_1(x)
        return F.dropout(self.activation(x) if self.twice else x, self.dropout, self.training)


def draw_paths(x: Tensor) -> Tensor:
    """One uniform random number per sample, with the rank of x."""
    return torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device)


def drop_path(x: Tensor, rate: float, drawn: Tensor) -> Tensor:
    """Drops x for samples whose random number is below the rate."""
    keep = 1.0 - rate
    return x * (torch.floor(keep + drawn) / keep).to(x.dtype)


class PreNormBlock(nn.Module):
    """The block of the CIFAR models: all dropout rates .1, activation after both dense layers."""

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        epsilon: float,
        path_rate: float = 0.0,
    ):
        super().__init__()
        self.path_rate = path_rate
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim, eps=epsilon), nn.LayerNorm(dim, eps=epsilon)
        self.attention = Attention(dim, heads, head_dim, dropout=0.1)
        self.mlp = Mlp(dim, hidden, activation, twice=True, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attention(self.norm_attention(x)))
        return x + self._dropped(self.mlp(self.norm_mlp(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or not self.path_rate:
            return branch
        return drop_path(branch, self.path_rate, draw_paths(branch))


class PostNormBlock(nn.Module):
    """The block of the Fashion-MNIST models: post-norm, with one norm used twice."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, epsilon: float):
        super().__init__()
        self.norm_shared = nn.LayerNorm(dim, eps=epsilon)
        self.attention = Attention(dim, heads, head_dim)
        self.mlp = Mlp(dim, hidden, _relu, twice=False, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_shared(x + self.attention(x))
        return self.norm_shared(x + self.mlp(x))


class TokenLearner(nn.Module):
    """TokenLearner on a square map: (B, N, C) to (B, tokens, C); with a norm if `epsilon` is given."""

    def __init__(
        self, dim: int, tokens: int, convs: int, activation: Callable[[Tensor], Tensor], epsilon: float | None
    ):
        super().__init__()
        self.tokens, self.convs, self.activation = tokens, convs, activation
        self.norm = nn.Identity() if epsilon is None else nn.LayerNorm(dim, eps=epsilon)
        for i in range(convs):
            self.add_module(f"conv_{i}", nn.Conv2d(tokens if i else dim, tokens, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        batch, places, channels = x.shape
        side = round(places**0.5)
        maps = self.norm(x).view(batch, side, side, channels).permute(0, 3, 1, 2)  # channels-last memory
        for i in range(self.convs):
            maps = self.get_submodule(f"conv_{i}")(maps if i == 0 else self.activation(maps))
        weights = torch.sigmoid(maps.flatten(2).float()) / places
        return torch.bmm(weights.to(x.dtype), x)


class Head(nn.Module):
    """Classifier with hidden layers and float32 logits; dropout before the first and after each hidden layer."""

    def __init__(
        self,
        dim: int,
        classes: int,
        hidden: Sequence[int] = (),
        activation: Callable[[Tensor], Tensor] = _relu,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.count, self.activation, self.dropout = len(hidden), activation, dropout
        for i, size in enumerate(hidden):
            self.add_module(f"hidden_{i}", nn.Linear(dim, size))
            dim = size
        self.logits = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        for i in range(self.count):
            x = self.activation(self.get_submodule(f"hidden_{i}")(x))
            x = F.dropout(x, self.dropout, self.training)
        with torch.autocast(x.device.type, enabled=False):
            return self.logits(x.float())


class ViT(nn.Module):
    """The ViTs: patch embedding, positions, blocks, an optional TokenLearner, norm, pooling, head."""

    def __init__(
        self,
        embed: nn.Module,
        tokens: int,
        dim: int,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        *,
        learner: nn.Module | None = None,
        learner_at: int = -1,
        epsilon: float | None = None,
        flatten: bool = False,
        embed_dropout: float = 0.0,
    ):
        super().__init__()
        self.flatten, self.embed_dropout = flatten, embed_dropout
        self.embed, self.position_embed = embed, Positions(tokens, dim)
        self.encoder = nn.Sequential()
        for i, block in enumerate(blocks):
            if learner is not None and i == learner_at:
                self.encoder.add_module(f"token_learner_{i}", learner)
            self.encoder.add_module(f"block_{i}", block)
        self.norm = nn.Identity() if epsilon is None else nn.LayerNorm(dim, eps=epsilon)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        x = self.position_embed(self.embed(images))
        x = self.norm(self.encoder(F.dropout(x, self.embed_dropout, self.training)))
        return self.head(x.flatten(1) if self.flatten else x.mean(1))


class ShiftBlock(nn.Module):
    """Border mask on four channel groups of a map (B, H, W, C), then an MLP as a residual branch."""

    def __init__(self, dim: int, side: int, path_rate: float, *, group: int = 12):
        super().__init__()
        mask = torch.ones(side, side, dim)
        mask[:, -1, :group] = mask[:, 0, group : 2 * group] = 0
        mask[-1, :, 2 * group : 3 * group] = mask[0, :, 3 * group : 4 * group] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.path_rate = path_rate
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, 2 * dim, _exact_gelu, twice=False, dropout=0.2)

    def forward(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        x = x * self.mask.to(x.dtype)
        y = self.mlp(self.norm(x))
        return x + (y if drawn is None or not self.path_rate else drop_path(y, self.path_rate, drawn))


class Merge(nn.Module):
    """Halves the sides of a map (B, H, W, C) and doubles its channels; odd sides are padded at the end."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.merge = nn.Conv2d(dim, 2 * dim, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)  # channels-last memory
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if x.shape[2] % 2 or x.shape[3] % 2 else x
        return self.merge(x).permute(0, 2, 3, 1)


class ShiftViT(nn.Module):
    """The tutorial's ShiftViT; all blocks share the random numbers of drop path."""

    def __init__(self) -> None:
        super().__init__()
        dim, side = 96, 12
        self.embed = nn.Module()
        self.embed.projection = nn.Conv2d(3, dim, 4, stride=4)
        self.depths = (2, 4, 8, 2)
        for stage, depth in enumerate(self.depths):
            if stage:
                self.add_module(f"merges_{stage - 1}", Merge(dim))
                dim, side = 2 * dim, (side + 1) // 2
            blocks = nn.Module()
            for i, rate in enumerate(torch.linspace(0.0, 0.2, depth).tolist()):
                blocks.add_module(f"block_{i}", ShiftBlock(dim, side, rate))
            self.add_module(f"stages_{stage}", blocks)
        self.head = Head(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed.projection(images).permute(0, 2, 3, 1)
        drawn = draw_paths(x) if self.training else None
        for stage in range(len(self.depths)):
            if stage:
                x = self.get_submodule(f"merges_{stage - 1}")(x)
            for block in self.get_submodule(f"stages_{stage}").children():
                x = block(x, drawn)
        return self.head(x.mean((1, 2)))


class ConvTokenizer(nn.Module):
    """Convolution, relu, zero padding, 3x3 max-pooling, twice: images (B, 3, 32, 32) to tokens (B, 64, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(3, 64, 3, bias=False)
        self.conv_1 = nn.Conv2d(64, 128, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv in (self.conv_0, self.conv_1):
            x = F.pad(F.relu(conv(x)), (1, 1, 1, 1))
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)  # equals TensorFlow's SAME for even sides
        return x.flatten(2).transpose(1, 2)


class SequencePool(nn.Module):
    """Sequence pooling of tokens (B, N, C): mean weighted by a softmax over scores of a dense layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.score(x).float(), dim=1).to(x.dtype)
        return torch.bmm(weights.transpose(1, 2), x)[:, 0]


class CCT(nn.Module):
    """The tutorial's compact transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position_embed = ConvTokenizer(), Positions(64, 128)
        self.encoder = nn.Sequential()
        for i, rate in enumerate((0.0, 0.1)):
            self.encoder.add_module(f"block_{i}", PreNormBlock(128, 2, 128, 128, _exact_gelu, 1e-5, path_rate=rate))
        self.norm = nn.LayerNorm(128, eps=1e-5)
        self.pooling = nn.Module()
        self.pooling.sequence_pool = SequencePool(128)
        self.head = Head(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.encoder(self.position_embed(self.embed(images))))
        return self.head(self.pooling.sequence_pool(x))


def _fashion(learned: bool) -> ViT:
    return ViT(
        DenseEmbed(1, 128, 5, epsilon=1e-3),
        25,
        128,
        [PostNormBlock(128, 3, 128, 100, 1e-3) for _ in range(4)],
        Head(128, 4, (150,), _relu),
        learner=TokenLearner(128, 4, 5, _exact_gelu, None) if learned else None,
        learner_at=2,
    )


def _mini(depth: int = 4, tokens: int = 0) -> ViT:
    return ViT(
        ConvEmbed(3, 128, 6),
        64,
        128,
        [PreNormBlock(128, 4, 128, 256, _tanh_gelu, 1e-6) for _ in range(depth)],
        Head(128, 10),
        learner=TokenLearner(128, tokens, 4, _tanh_gelu, 1e-6) if tokens else None,
        learner_at=3,
        epsilon=1e-6,
        embed_dropout=0.1,
    )


def _cifar100() -> ViT:
    return ViT(
        DenseEmbed(3, 64, 6),
        144,
        64,
        [PreNormBlock(64, 4, 64, 128, _exact_gelu, 1e-6) for _ in range(8)],
        Head(144 * 64, 100, (2048, 1024), _exact_gelu, dropout=0.5),
        epsilon=1e-6,
        flatten=True,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tutorial_fashion_vit": partial(_fashion, learned=False),
    "tutorial_fashion_fast_vit": partial(_fashion, learned=True),
    "tutorial_mini_vit": _mini,
    "tutorial_mini_vit_8l": partial(_mini, depth=8),
    "tutorial_mini_vit_tl4": partial(_mini, tokens=4),
    "tutorial_mini_vit_tl8": partial(_mini, tokens=8),
    "tutorial_vit_cifar100": _cifar100,
    "tutorial_shiftvit": ShiftViT,
    "tutorial_cct": CCT,
}


def make_model(name: str) -> nn.Module:
    """Creates a model by name, initialized by PyTorch."""
    return MODELS[name]()
