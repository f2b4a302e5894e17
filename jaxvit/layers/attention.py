"""Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

Kernels are kept apart and per head, `query`, `key`, `value` (C, heads, head_dim) and `out` (heads, head_dim, C): the
layout of Flax's own module and of the published ViT checkpoints.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvit.layers.initialisers import attention_kernel
from jaxvit.layers.norm import Norm
from jaxvit.ops.stochastic import dropout
from jaxvit.ops.ways import way


def _absorbing_pays(queries: tuple[int, ...], context: tuple[int, ...], head_dim: int) -> bool:
    """Whether `Attention._absorbed` has fewer multiply-adds a head: its products of kernels cost as much for one image
    as for many, and do not pay for a few tokens. Shapes (B, N, C); a batch that is not known yet counts as large.
    """
    (batch, tokens, channels), (_, keys, width) = queries, context
    if head_dim < width or not isinstance(batch, int):
        return head_dim >= width
    products = 2 * batch * tokens * keys
    plain = 2 * batch * (tokens * channels + keys * width) * head_dim + products * head_dim
    return 2 * (batch * tokens + head_dim) * channels * width + products * width < plain


class Attention(nn.Module):
    """Attention of `q_BNC` on `kv_BNC`, or of `q_BNC` on itself.

    Where heads are at least as wide as the tokens, as in the tutorials, there is a cheaper way to the same result;
    whether it is taken `jaxvit.ops.ways` says. The softmax is float32. The weights are sown as `attention`
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

        may = way("attention") == "absorbed" and self.has_variable("params", "query") and not self.qk_norm
        if may and _absorbing_pays(q_BNC.shape, kv_BNC.shape, head_dim):
            if train and self.dropout > 0 and key is None:
                key = self.make_rng("dropout")
            return self._absorbed(q_BNC, kv_BNC, key if train else None)

        q_BNMD, k_BNMD, v_BNMD = project("query", q_BNC), project("key", kv_BNC), project("value", kv_BNC)
        if self.qk_norm:
            q_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_query")(q_BNMD)
            k_BNMD = Norm(epsilon=self.norm_eps, dtype=self.dtype, name="norm_key")(k_BNMD)

        # Not jax.nn.dot_product_attention: it has no dropout, shows no weights, and refuses bfloat16 where implicit
        # promotion of dtypes is off.
        q_BNMD = q_BNMD * jnp.asarray(head_dim**-0.5, q_BNMD.dtype)
        logits_BMNN = jnp.einsum("bqmd,bkmd->bmqk", q_BNMD, k_BNMD, preferred_element_type=jnp.float32)
        weights_BMNN = jax.nn.softmax(logits_BMNN, axis=-1)
        self.sow("intermediates", "attention", weights_BMNN)
        if train and self.dropout > 0:
            weights_BMNN = dropout(weights_BMNN, self.dropout, self.make_rng("dropout") if key is None else key)
        x_BNMD = jnp.einsum("bmqk,bkmd->bqmd", weights_BMNN.astype(v_BNMD.dtype), v_BNMD)
        return nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=attention_kernel(self.initialiser, (self.heads, head_dim, channels)),
            dtype=self.dtype,
            name="out",
        )(x_BNMD)

    def _absorbed(self, q_BNC: jax.Array, kv_BNC: jax.Array, key: jax.Array | None) -> jax.Array:
        """The same function with two projections for four: of the logits (x Wq)(y Wk)ᵀ = x (Wq Wkᵀ) yᵀ, and of the
        output (P y Wv) Wo = P y (Wv Wo), the kernels are multiplied first. All heads then share their keys and values,
        the tokens themselves, so no array is turned around. The key's bias adds the same to all logits of a query, and
        drops out of the softmax.
        """
        params = self.variables["params"]
        batch, queries, channels = q_BNC.shape
        dtype, keys = jnp.dtype(self.dtype), kv_BNC.shape[-1]
        q_BNC, kv_BNC = q_BNC.astype(dtype), kv_BNC.astype(dtype)
        query_CMD, key_CMD, value_CMD = (params[name]["kernel"] for name in ("query", "key", "value"))
        out_MDC, out_bias_C = params["out"]["kernel"], params["out"]["bias"]
        heads, head_dim = query_CMD.shape[1:]

        scale = np.asarray(head_dim**-0.5, query_CMD.dtype)
        logit_CME = jnp.einsum("cmd,emd->cme", query_CMD * scale, key_CMD).astype(dtype)
        q_BNE = q_BNC @ logit_CME.reshape(channels, heads * keys)
        if self.qkv_bias:
            bias_ME = jnp.einsum("md,emd->me", params["query"]["bias"] * scale, key_CMD).astype(dtype)
            q_BNE = q_BNE + bias_ME.reshape(1, 1, heads * keys)
        q_BNE = q_BNE.reshape(batch, queries * heads, keys)
        logits_BNN = jnp.einsum("bqe,bke->bqk", q_BNE, kv_BNC, preferred_element_type=jnp.float32)
        weights_BNN = jax.nn.softmax(logits_BNN, axis=-1)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", weights_BNN.reshape(batch, queries, heads, -1).swapaxes(1, 2))
        noisy = key is not None and self.dropout > 0
        if noisy:
            weights_BNN = dropout(weights_BNN, self.dropout, key)

        x_BNE = jnp.einsum("bqk,bke->bqe", weights_BNN.astype(dtype), kv_BNC)
        output_MEC = jnp.einsum("emd,mdc->mec", value_CMD, out_MDC).astype(dtype)
        x_BNC = x_BNE.reshape(batch, queries, heads * keys) @ output_MEC.reshape(heads * keys, channels)
        if self.qkv_bias:
            bias_MC = jnp.einsum("md,mdc->mc", params["value"]["bias"], out_MDC)
            if noisy:  # the weights of a query do not add up to 1
                total_BNM = jnp.sum(weights_BNN, axis=-1).reshape(batch, queries, heads)
                x_BNC = x_BNC + (total_BNM @ bias_MC).astype(dtype)
            else:
                out_bias_C = out_bias_C + jnp.sum(bias_MC, axis=0)
        return x_BNC + out_bias_C.reshape(1, 1, channels).astype(dtype)
