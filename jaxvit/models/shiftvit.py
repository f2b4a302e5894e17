"""ShiftViT: a pyramid of maps, where a shift without parameters replaces attention.

Paper: Wang et al. 2022 (arXiv:2201.10801); authors' code microsoft/SPACH. The `shiftvit_*` models have the authors'
parameters and operations. `shiftvit_tiny`, `_small` and `_base` are the paper's Shift-T, -S and -B (MLP ratio 2), which
their code calls `shiftvit_r2_*`. In each direction, the tiny and small sizes move C // 12 channels and the base sizes
C // 16 (their `n_div`): 8 channels in the first stage of every size, a third or a quarter of the channels in total.

Departures of the Keras tutorial from the authors. Each is an attribute:

| tutorial | attribute | authors | effect |
|---|---|---|---|
| the shift does not shift: it crops and pads on the same side, which zeroes one border of each group | `shift='border'` | `'true'` | pixels mix in the merges only |
| groups of 12 channels instead of 12 groups: 50, 25, 12.5, 6.25 % of the channels, by stage | `groups='width'` | `'count'` | theirs: a third at every stage (base sizes: a quarter) |
| drop-path rates rise from 0 in each stage | `drop_path_ramp='stage'` | `'all'` | early blocks drop more |
| every drop-path layer has seed 1337 | `shared_drop_path=True` | `False` | all layers draw the same numbers: drops are nested |
| norm over channels | `norm='channels'` | `'sample'` | statistics per pixel, not per image |
| no norm after the stem or before the mean | `stem_norm=False`, `final_norm=False` | `True` | 1,728 parameters fewer |
| merges keep an odd last row and column | `merge_padding='SAME'` | `'VALID'` | 3x3 becomes 2x2, not 1x1 |

The residual connection starts after the shift in the authors' block too. The row on the seed follows from the code of
the tutorial's layers; that the drops were nested in the published run is inferred.
"""  # noqa: E501

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.embed import PatchEmbed
from jaxvit.layers.norm import Norm
from jaxvit.layers.pool import Classifier
from jaxvit.layers.shift import Downsample, ShiftBlock, ShiftStage
from jaxvit.models.attributes import check_attributes
from jaxvit.models.blocks import inherited, layer_of
from jaxvit.ops.stochastic import drop_path_rates, dropout


class ShiftViT(nn.Module):
    """A ShiftViT for images whose sides are multiples of `patch`.

    The forward pass of `tutorial_shiftvit` for B images; each name is a submodule, in the order of execution:

        images                        (B, 48, 48, 3)   float32, normalized
        embed                         (B, 12, 12, 96)  4x4 patches, each projected to dim=96 channels
        stages_0                      (B, 12, 12, 96)  2 blocks, each as block_0
          block_0                     (B, 12, 12, 96)  first shifts some channels by a pixel, in 4 directions
            norm                      (B, 12, 12, 96)
            mlp                       (B, 12, 12, 96)  hidden layer of 192; x = x + mlp(norm(x))
        merges_0                      (B, 6, 6, 192)   norm, then a 2x2 convolution with stride 2
        stages_1                      (B, 6, 6, 192)   4 blocks
        merges_1                      (B, 3, 3, 384)
        stages_2                      (B, 3, 3, 384)   8 blocks
        merges_2                      (B, 2, 2, 768)
        stages_3                      (B, 2, 2, 768)   2 blocks; `features` returns this
                                      (B, 768)         the mean over the places
        head                          (B, 10)          logits, float32

    The authors' models have a norm after the stem (norm_stem) and before the mean (norm_final).

    Attributes:
      num_classes: number of classes K.
      patch: side of a patch in pixels.
      dim: channels of the first stage; each stage has twice as many as the one before.
      depths: number of blocks of each stage.
      mlp_ratio: channels of the MLP's hidden layer as a multiple of the stage's channels.
      shift: 'true', 'border' or 'none'; the docstring of `jaxvit.models.shiftvit` compares them.
      groups: 'count' or 'width'; see there.
      divisions: number ('count') or width ('width') of the groups of channels.
      pixels: distance of the shift.
      norm: 'sample' or 'channels'.
      norm_eps: epsilon of the norms.
      stem_norm: apply a norm after the stem.
      final_norm: apply a norm before the mean over the map.
      merge_padding: 'VALID' or 'SAME'.
      activation: 'gelu' (exact), 'gelu_tanh' or 'relu'.
      dropout: dropout rate in the MLPs, and after the stem if embed_dropout is -1.
      embed_dropout: dropout rate after the stem; -1 = `dropout`.
      drop_path: highest drop-path rate.
      drop_path_ramp: 'all' = the rates rise over all blocks; 'stage' = they start at 0 in each stage.
      shared_drop_path: all blocks of a step use the same random numbers.
      crop_to_patches: drop rows and columns that do not fill a patch; False = such an image is an error.
      initialiser: initial values; see `jaxvit.layers.initialisers`.
      remat: what each block keeps for the backward pass, which computes the rest again: 'none' (keep everything),
        'full' (its input only), 'dots' (also matrix products) or 'dots_no_batch' (also those of dense layers).
      scan: compile one block per stage and loop over it.
      dtype: dtype of the computation, 'float32', 'bfloat16' or 'float16'. Parameters, statistics of norms and logits
        are float32.

    Raises:
      ValueError: an attribute is not allowed, or two do not go together; at the call, the image does not fit.

    Example:
      >>> model = ShiftViT(depths=(1, 1))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(0), images, train=False)
      >>> logits.shape, model.apply(variables, images, train=False, method="features").shape
      ((2, 10), (2, 8, 8, 96))
    """

    num_classes: int = 10
    patch: int = 2
    dim: int = 48
    depths: tuple[int, ...] = (2, 2, 2)
    mlp_ratio: float = 2.0
    shift: str = "true"
    groups: str = "count"
    divisions: int = 12
    pixels: int = 1
    norm: str = "sample"
    norm_eps: float = 1e-5
    stem_norm: bool = True
    final_norm: bool = True
    merge_padding: str = "VALID"
    activation: str = "gelu"
    dropout: float = 0.0
    embed_dropout: float = -1.0
    drop_path: float = 0.0
    drop_path_ramp: str = "all"
    shared_drop_path: bool = False
    crop_to_patches: bool = False
    initialiser: str = "shiftvit"
    remat: str = "none"
    scan: bool = False
    dtype: str = "float32"

    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (B, K), float32, of normalized float images (B, H, W, C); `train` turns on dropout."""
        x_BHWC = self.features(images_BHWC, train=train)
        x_BC = jnp.mean(x_BHWC, axis=(1, 2), dtype=jnp.float32).astype(x_BHWC.dtype)
        return self.head(x_BC, train=train)

    def features(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Computes the map of the last stage after the final norm: (B, h, w, dim 2^(stages - 1))."""
        x_BHWC = self.embed(images_BHWC.astype(self.dtype))
        x_BHWC = self.norm_stem(x_BHWC) if self.stem_norm else x_BHWC
        rate = inherited(self.embed_dropout, self.dropout)
        if train and rate > 0:
            x_BHWC = dropout(x_BHWC, rate, self.make_rng("dropout"))
        path_key = self.make_rng("dropout") if train and self.shared_drop_path and self.drop_path > 0 else None
        for i, stage in enumerate(self.stages):
            x_BHWC = self.merges[i - 1](x_BHWC) if i else x_BHWC
            x_BHWC = stage(x_BHWC, train=train, path_key=path_key)
        return self.norm_final(x_BHWC) if self.final_norm else x_BHWC

    def setup(self):
        """Creates the submodules; a submodule's attribute is its name in the parameter tree."""
        self.embed = layer_of(self, PatchEmbed, norm=False, crop=self.crop_to_patches)()
        norm = partial(Norm, over=self.norm, epsilon=self.norm_eps, dtype=self.dtype)
        if self.stem_norm:
            self.norm_stem = norm()
        block = layer_of(self, ShiftBlock, mlp_dropout=self.dropout)
        self.stages = [ShiftStage(block, rates, self.remat, self.scan) for rates in self.drop_path_table()]
        self.merges = [layer_of(self, Downsample, padding=self.merge_padding)() for _ in self.depths[1:]]
        if self.final_norm:
            self.norm_final = norm()
        self.head = Classifier(num_classes=self.num_classes, initialiser=self.initialiser, dtype=self.dtype)

    def drop_path_table(self) -> tuple[tuple[float, ...], ...]:
        """Returns the drop-path rate of each block, by stage."""
        if self.drop_path_ramp == "stage":
            return tuple(drop_path_rates(self.drop_path, depth) for depth in self.depths)
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        return tuple(tuple(next(rates) for _ in range(depth)) for depth in self.depths)

    def __post_init__(self):
        super().__post_init__()
        check_attributes(self)
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths={self.depths} needs at least one stage, and one block in each")
        if self.drop_path_ramp not in ("all", "stage"):
            raise ValueError(f"drop_path_ramp={self.drop_path_ramp!r} is neither 'all' nor 'stage'")
        if self.shift != "none" and self.groups == "count" and not 4 <= self.divisions <= self.dim:
            raise ValueError(f"divisions={self.divisions} does not lie between 4 and dim={self.dim}")

    def idle_attributes(self) -> dict[str, str]:
        """Returns {attribute: reason} of the attributes that have no effect, given the values of the others."""
        idle = {}
        if self.shift == "none":
            idle |= dict.fromkeys(("groups", "divisions", "pixels"), "shift='none'")
        if not self.drop_path:
            idle |= dict.fromkeys(("drop_path_ramp", "shared_drop_path"), "drop_path=0.0")
        return idle


def _imagenet(dim: int, depths: tuple[int, ...], mlp_ratio: float, drop_path: float, divisions: int) -> dict:
    return {
        "input": (224, 224, 3), "num_classes": 1000, "patch": 4, "dim": dim, "depths": depths, "mlp_ratio": mlp_ratio,
        "drop_path": drop_path, "divisions": divisions,
    }  # fmt: skip


SIZES: dict[str, dict] = {
    "tutorial_shiftvit": {
        "input": (48, 48, 3), "num_classes": 10, "patch": 4, "dim": 96, "depths": (2, 4, 8, 2), "mlp_ratio": 2.0,
        "shift": "border", "groups": "width", "norm": "channels", "stem_norm": False, "final_norm": False,
        "merge_padding": "SAME", "dropout": 0.2, "embed_dropout": 0.0, "drop_path": 0.2, "drop_path_ramp": "stage",
        "shared_drop_path": True, "initialiser": "keras",
    },
    "shiftvit_light_tiny": _imagenet(96, (2, 2, 6, 2), 4.0, 0.2, 12),
    "shiftvit_r4_tiny": _imagenet(96, (2, 2, 12, 3), 4.0, 0.2, 12),
    "shiftvit_tiny": _imagenet(96, (6, 8, 18, 6), 2.0, 0.2, 12),
    "shiftvit_light_small": _imagenet(96, (2, 2, 18, 2), 4.0, 0.4, 12),
    "shiftvit_r4_small": _imagenet(96, (2, 6, 24, 4), 4.0, 0.4, 12),
    "shiftvit_small": _imagenet(96, (10, 18, 36, 10), 2.0, 0.4, 12),
    "shiftvit_light_base": _imagenet(128, (2, 2, 18, 2), 4.0, 0.5, 16),
    "shiftvit_r4_base": _imagenet(128, (4, 6, 22, 4), 4.0, 0.5, 16),
    "shiftvit_base": _imagenet(128, (10, 18, 36, 10), 2.0, 0.6, 16),
}  # fmt: skip
