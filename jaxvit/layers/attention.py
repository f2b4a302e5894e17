"""Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

The kernels `query`, `key` and `value` have shape (C, heads, head_dim), and `out` has (heads, head_dim, C), as in Flax's
own module and in the published ViT checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit.layers.arguments import check_layer
from jaxvit.layers.initialisers import attention_kernel
from jaxvit.layers.norm import Norm
from jaxvit.ops.arguments import check_array
from jaxvit.ops.attention import (
    AttentionKernels,
    absorbing_pays,
    attend,
    attend_absorbed,
    attend_fused,
    fusing_fits,
)
from jaxvit.ops.implementations import implementation

if TYPE_CHECKING:
    from jaxvit.layers.reducing import Reducing


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention: tokens (B, N, C) to tokens (B, N, C).

    If the heads are at least as wide as the tokens, as in the tutorials, or on an accelerator in bfloat16, a cheaper
    implementation gives the same result; `jaxvit.ops.implementations` chooses. The softmax is float32. If the
    collection `intermediates` is mutable, the layer sows the attention weights as `attention` (B, heads, queries,
    keys).

    Attributes:
      heads: number of heads, 1 or more.
      head_dim: channels per head; 0 = C // heads. The tutorials use wider heads.
      qkv_bias: whether query, key and value have biases. The output always has one.
      qk_norm: normalise queries and keys per head before the product (Dehghani et al. 2023, arXiv:2302.05442).
      dropout: dropout rate of the attention weights, 0 to 1.
      norm_eps: epsilon of the norms of `qk_norm`, 0 or more.
      initialiser: initial values, 'vit', 'big_vision', 'keras_3.15' (or 'keras'), 'keras_3.14' (or 'keras_3d'),
        'shiftvit' or 'cct'; see `jaxvit.layers.initialisers`.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16', as a name or a type. Parameters are float32.

    Raises:
      ValueError: an attribute is not allowed; or at the call, `head_dim` is 0 and `heads` does not divide C, or an
        input is not (B, N, C).

    Example:
      >>> layer = Attention(heads=2)
      >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 16, 8)), train=False)
      >>> x.shape, variables["params"]["query"]["kernel"].shape
      ((2, 16, 8), (8, 2, 4))
    """

    heads: int
    head_dim: int = 0
    qkv_bias: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        check_layer(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        q_BNC: jax.Array,
        kv_BNC: jax.Array | None = None,
        *,
        train: bool,
        key: jax.Array | None = None,
        reducing: Reducing | None = None,
    ) -> jax.Array:
        """Applies attention.

        Args:
          q_BNC: tokens that become queries (B, N, C).
          kv_BNC: tokens that become keys and values (B, K, E); None = `q_BNC`, which is self-attention.
          train: whether to apply dropout.
          key: JAX random key for dropout; None = one of the 'dropout' stream.
          reducing: gives the sizes of merged tokens, and takes the keys and the weights; None = no tokens are merged.

        Returns:
          Tokens (B, N, C).
        """
        kv_BNC = q_BNC if kv_BNC is None else kv_BNC
        bias_BK = None if reducing is None else reducing.bias_BN
        check_array("Attention", "q_BNC", q_BNC, "B N C")
        check_array("Attention", "kv_BNC", kv_BNC, "B K E")
        channels = q_BNC.shape[-1]
        if not self.head_dim and channels % self.heads:
            raise ValueError(
                f"Attention: heads={self.heads} does not divide {channels} channels: change heads or set head_dim"
            )
        head_dim = self.head_dim or channels // self.heads

        def project(name: str, x_BNC: jax.Array) -> jax.Array:
            return nn.DenseGeneral(
                (self.heads, head_dim),
                use_bias=self.qkv_bias,
                kernel_init=attention_kernel(self.initialiser, (x_BNC.shape[-1], self.heads, head_dim)),
                dtype=self.dtype,
                name=name,
            )(x_BNC)

        may = implementation("attention") == "absorbed" and self.has_variable("params", "query") and not self.qk_norm
        if may and absorbing_pays(q_BNC.shape, kv_BNC.shape, head_dim):
            return self._absorbed(q_BNC, kv_BNC, train, key, reducing)

        q_BNMD, k_BNMD, v_BNMD = project("query", q_BNC), project("key", kv_BNC), project("value", kv_BNC)
        if self.qk_norm:
            q_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_query")(q_BNMD)
            k_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_key")(k_BNMD)
        noisy = train and self.dropout > 0
        if noisy and key is None:
            key = self.make_rng("dropout")
        seen = bool(reducing and reducing.step) or self.is_mutable_collection("intermediates") or self.is_initializing()
        fused = implementation("attention") == "fused" and not noisy and not seen and bias_BK is None
        if fused and fusing_fits(q_BNMD.shape[1], k_BNMD.shape[1], head_dim, q_BNMD.dtype):
            x_BNMD = attend_fused(q_BNMD, k_BNMD, v_BNMD)
        else:
            how = {"dropout_rate": self.dropout, "key": key if noisy else None, "bias_BK": bias_BK}
            x_BNMD, weights_BMNN = attend(q_BNMD, k_BNMD, v_BNMD, **how)
            self.sow("intermediates", "attention", weights_BMNN)
            if reducing:
                reducing.see(lambda: jnp.mean(k_BNMD, axis=2), lambda: weights_BMNN)
        return nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=attention_kernel(self.initialiser, (self.heads, head_dim, channels)),
            dtype=self.dtype,
            name="out",
        )(x_BNMD)

    def _absorbed(
        self, q_BNC: jax.Array, kv_BNC: jax.Array, train: bool, key: jax.Array | None, reducing: Reducing | None
    ) -> jax.Array:
        """The same by `attend_absorbed`, which multiplies the kernels first and computes no queries, keys or values."""
        if train and self.dropout > 0 and key is None:
            key = self.make_rng("dropout")
        x_BNC, weights_BNN = attend_absorbed(
            q_BNC,
            kv_BNC,
            self._kernels(),
            dtype=self.dtype,
            dropout_rate=self.dropout,
            key=key if train else None,
            bias_BK=None if reducing is None else reducing.bias_BN,
        )
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", self._by_head(weights_BNN))
        if reducing:
            reducing.see(partial(self._mean_keys, kv_BNC), partial(self._by_head, weights_BNN))
        return x_BNC

    def _by_head(self, weights_BNN: jax.Array) -> jax.Array:
        """The weights of `attend_absorbed` as (B, M, N, K)."""
        batch, rows, keys = weights_BNN.shape
        return weights_BNN.reshape(batch, rows // self.heads, self.heads, keys).swapaxes(1, 2)

    def _mean_keys(self, kv_BNC: jax.Array) -> jax.Array:
        """The keys averaged over heads, by the averaged kernel: `attend_absorbed` computes no keys."""
        p = self.variables["params"]["key"]
        kernel_CD = jnp.mean(p["kernel"], axis=1).astype(self.dtype)
        bias_D = jnp.mean(p["bias"], axis=0).astype(self.dtype) if self.qkv_bias else jnp.zeros((), self.dtype)
        return kv_BNC.astype(self.dtype) @ kernel_CD + bias_D.reshape(1, 1, -1)

    def _kernels(self) -> AttentionKernels:
        p = self.variables["params"]
        biases = (p["query"]["bias"], p["value"]["bias"]) if self.qkv_bias else (None, None)
        query, key, value, out = (p[name]["kernel"] for name in ("query", "key", "value", "out"))
        return AttentionKernels(query, key, value, out, p["out"]["bias"], *biases)
