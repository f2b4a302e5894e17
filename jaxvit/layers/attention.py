"""Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

Kernels are kept apart and per head, `query`, `key`, `value` (C, heads, head_dim) and `out` (heads, head_dim, C): the
layout of Flax's own module and of the published ViT checkpoints.
"""

import jax
from flax import linen as nn

from jaxvit.layers.initialisers import attention_kernel
from jaxvit.layers.norm import Norm
from jaxvit.ops.attention import AttentionKernels, absorbing_pays, attend, attend_absorbed
from jaxvit.ops.implementations import implementation


class Attention(nn.Module):
    """Attention of `q_BNC` on `kv_BNC`, or of `q_BNC` on itself.

    Where heads are at least as wide as the tokens, as in the tutorials, there is a cheaper implementation;
    `jaxvit.ops.implementations` chooses. The softmax is float32. The weights are sown as `attention`
    (B, M, queries, keys) when `intermediates` is mutable.

    Attributes:
      heads: number of heads.
      head_dim: channels per head; 0 = C // heads. The tutorials use wider heads than that.
      qkv_bias: biases on query, key and value (the output always has one).
      qk_norm: normalise queries and keys per head before the product (Dehghani et al. 2023, arXiv:2302.05442).
      dropout: rate on the attention weights.
      norm_eps: epsilon of the norms of `qk_norm`.
      initialiser: a name of `jaxvit.layers.initialisers`.
      dtype: of the computation.

    Raises:
      ValueError: head_dim is 0 and the channels do not divide by the heads.
    """

    heads: int
    head_dim: int = 0
    qkv_bias: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6
    initialiser: str = "vit"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, q_BNC: jax.Array, kv_BNC: jax.Array | None = None, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        if kv_BNC is None:
            kv_BNC = q_BNC
        channels = q_BNC.shape[-1]
        if not self.head_dim and channels % self.heads:
            raise ValueError(f"heads={self.heads} does not divide {channels} channels: change heads or set head_dim")
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
            if train and self.dropout > 0 and key is None:
                key = self.make_rng("dropout")
            x_BNC, weights_BNN = attend_absorbed(
                q_BNC,
                kv_BNC,
                self._kernels(),
                dtype=self.dtype,
                dropout_rate=self.dropout,
                key=key if train else None,
            )
            if self.is_mutable_collection("intermediates"):
                batch, queries, _ = q_BNC.shape
                weights_BNMN = weights_BNN.reshape(batch, queries, self.heads, -1)
                self.sow("intermediates", "attention", weights_BNMN.swapaxes(1, 2))
            return x_BNC

        q_BNMD, k_BNMD, v_BNMD = project("query", q_BNC), project("key", kv_BNC), project("value", kv_BNC)
        if self.qk_norm:
            q_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_query")(q_BNMD)
            k_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_key")(k_BNMD)
        noisy = train and self.dropout > 0
        if noisy and key is None:
            key = self.make_rng("dropout")
        x_BNMD, weights_BMNN = attend(q_BNMD, k_BNMD, v_BNMD, dropout_rate=self.dropout, key=key if noisy else None)
        self.sow("intermediates", "attention", weights_BMNN)
        return nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=attention_kernel(self.initialiser, (self.heads, head_dim, channels)),
            dtype=self.dtype,
            name="out",
        )(x_BNMD)

    def _kernels(self) -> AttentionKernels:
        p = self.variables["params"]
        biases = (p["query"]["bias"], p["value"]["bias"]) if self.qkv_bias else (None, None)
        kernels = (p[name]["kernel"] for name in ("query", "key", "value", "out"))
        return AttentionKernels(*kernels, p["out"]["bias"], *biases)
