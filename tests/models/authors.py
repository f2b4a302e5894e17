"""Every attribute of every published size, typed in from the authors' own configurations.

Sources: SPACH models/registry.py and models/shiftvit.py at dcede1e; Compact-Transformers src/cct.py, cvt.py, vit.py and
utils/ at cd11f09; vision_transformer vit_jax/configs/models.py and models_vit.py at c6de1e5; Scenic
projects/token_learner/configs/im1k_token_learner_config.py and model.py at 4a38d47. Sizes stand here in the authors'
terms, then in ours; nothing here comes from jaxvit.
"""

# What no author's model has, or what does not change the function: remat, scan, and the float32 that all compute in.
_RUNNING = {"remat": "none", "scan": False, "dtype": "float32"}

# --- ShiftViT: embed_dim, depths, mlp_ratio, drop_path_rate, n_div
_SHIFTVIT = {
    "shiftvit_light_tiny": (96, (2, 2, 6, 2), 4, 0.2, 12),
    "shiftvit_r4_tiny": (96, (2, 2, 12, 3), 4, 0.2, 12),
    "shiftvit_tiny": (96, (6, 8, 18, 6), 2, 0.2, 12),  # theirs: shiftvit_r2_tiny
    "shiftvit_light_small": (96, (2, 2, 18, 2), 4, 0.4, 12),
    "shiftvit_r4_small": (96, (2, 6, 24, 4), 4, 0.4, 12),
    "shiftvit_small": (96, (10, 18, 36, 10), 2, 0.4, 12),  # theirs: shiftvit_r2_small
    "shiftvit_light_base": (128, (2, 2, 18, 2), 4, 0.5, 16),
    "shiftvit_r4_base": (128, (4, 6, 22, 4), 4, 0.5, 16),
    "shiftvit_base": (128, (10, 18, 36, 10), 2, 0.6, 16),  # theirs: shiftvit_r2_base
}


def _shiftvit(embed_dim, depths, mlp_ratio, drop_path_rate, n_div):
    return {
        "input": (224, 224, 3),  # img_size, in_chans
        "num_classes": 1000,
        "patch": 4,  # patch_size
        "dim": embed_dim,
        "depths": depths,
        "mlp_ratio": float(mlp_ratio),
        "shift": "true",  # shift_feat
        "groups": "count",  # g = C // n_div
        "divisions": n_div,
        "pixels": 1,
        "norm": "sample",  # GN1
        "norm_eps": 1e-5,  # nn.GroupNorm
        "stem_norm": True,  # patch_norm
        "final_norm": True,
        "merge_padding": "VALID",  # Conv2d(2, stride 2)
        "activation": "gelu",  # nn.GELU
        "dropout": 0.0,  # drop_rate
        "embed_dropout": -1.0,  # pos_drop has drop_rate too
        "drop_path": drop_path_rate,
        "drop_path_ramp": "all",  # linspace over sum(depths)
        "shared_drop_path": False,
        "crop_to_patches": False,
        "initialiser": "shiftvit",
        **_RUNNING,
    }


# --- CCT, CVT, ViT-Lite: num_layers, num_heads, mlp_ratio, embedding_dim; kernel_size, n_conv_layers; img_size, classes
_2, _4 = (2, 2, 1, 128), (4, 2, 1, 128)
_6, _7, _14 = (6, 4, 2, 256), (7, 4, 2, 256), (14, 6, 3, 384)
_CCT = {
    "cct_2_3x2_32": (_2, 3, 2, 32, 10),
    "cct_4_3x2_32": (_4, 3, 2, 32, 10),
    "cct_6_3x1_32": (_6, 3, 1, 32, 10),
    "cct_6_3x2_32": (_6, 3, 2, 32, 10),
    "cct_7_3x1_32": (_7, 3, 1, 32, 10),
    "cct_7_3x2_32": (_7, 3, 2, 32, 10),
    "cct_7_7x2_224": (_7, 7, 2, 224, 102),
    "cct_14_7x2_224": (_14, 7, 2, 224, 1000),
    "cct_14_7x2_384": (_14, 7, 2, 384, 1000),
}
_PATCHES = {"cvt_2_4_32": _2, "cvt_4_4_32": _4, "cvt_6_4_32": _6, "cvt_7_4_32": _7}
_PATCHES |= {"vit_lite_2_4_32": _2, "vit_lite_4_4_32": _4, "vit_lite_6_4_32": _6, "vit_lite_7_4_32": _7}


def _compact(size, img_size, num_classes):
    num_layers, num_heads, mlp_ratio, embedding_dim = size
    return {
        "input": (img_size, img_size, 3),
        "num_classes": num_classes,
        "conv_width": 64,  # in_planes
        "stride": 0,  # max(1, kernel_size // 2 - 1)
        "pad_after_conv": False,
        "same_pooling": False,  # pooling_padding 1
        "patch": 4,
        "crop_to_patches": False,
        "dim": embedding_dim,
        "depth": num_layers,
        "heads": num_heads,
        "head_dim": 0,  # dim // num_heads
        "mlp_ratio": float(mlp_ratio),
        "positions": "learned",  # positional_embedding 'learnable'
        "frozen_positions": False,
        "norm_order": "cct",  # src = norm1(src)
        "norm_eps": 1e-5,  # nn.LayerNorm
        "activation": "gelu",  # F.gelu
        "activate_twice": False,
        "qkv_bias": False,
        "dropout": 0.0,
        "embed_dropout": -1.0,  # as dropout
        "projection_dropout": -1.0,  # as dropout
        "attention_dropout": 0.1,
        "drop_path": 0.1,  # stochastic_depth
        "initialiser": "cct",
        **_RUNNING,
    }


def _cct(size, kernel_size, n_conv_layers, img_size, num_classes):
    conv = {"tokenizer": "conv", "conv_layers": n_conv_layers, "kernel": kernel_size, "pool": "sequence"}
    return {**_compact(size, img_size, num_classes), **conv}


def _patches(size, seq_pool):
    # The two attributes of convolutions are idle.
    pool = "sequence" if seq_pool else "cls"
    return {**_compact(size, 32, 10), "tokenizer": "patch", "pool": pool, "conv_layers": 2, "kernel": 3}


# --- ViT: patches.size, hidden_size, mlp_dim, num_heads, num_layers, dropout_rate
_VIT = {
    "vit_ti16_224": (16, 192, 768, 3, 12, 0.0),
    "vit_s16_224": (16, 384, 1536, 6, 12, 0.0),
    "vit_s32_224": (32, 384, 1536, 6, 12, 0.0),
    "vit_b16_224": (16, 768, 3072, 12, 12, 0.0),
    "vit_b32_224": (32, 768, 3072, 12, 12, 0.0),
    "vit_l16_224": (16, 1024, 4096, 16, 24, 0.1),
}


def _vit(patch, hidden_size, mlp_dim, num_heads, num_layers, dropout_rate):
    return {
        "input": (224, 224, 3),
        "num_classes": 1000,
        "patch": patch,
        "dim": hidden_size,
        "depth": num_layers,
        "heads": num_heads,
        "head_dim": 0,  # hidden_size // num_heads
        "mlp_ratio": mlp_dim / hidden_size,
        "mlp_dim": 0,
        "pool": "cls",  # classifier 'token'
        "registers": 0,
        "positions": "learned",
        "stem": "conv",
        "stem_norm": False,
        "crop_to_patches": False,
        "takes_patches": False,
        "norm_order": "pre",
        "norm_eps": 1e-6,  # flax.linen.LayerNorm
        "final_norm": True,  # encoder_norm
        "norm_after_pool": False,
        "activation": "gelu_tanh",  # flax.linen.gelu approximates
        "activate_twice": False,
        "qkv_bias": True,
        "qk_norm": False,
        "layer_scale": 0.0,
        "dropout": dropout_rate,
        "embed_dropout": -1.0,  # dropout_rate
        "projection_dropout": -1.0,  # dropout_rate
        "attention_dropout": 0.0,
        "drop_path": 0.0,
        "learner": "none",
        "learner_at": (),
        "learner_tokens": 8,
        "learner_reduce": "sum",
        "learner_convs": 4,
        "learner_groups": 4,
        "learner_hidden": 64,
        "learner_norm": True,
        "learner_activation": "gelu_tanh",
        "fuse": False,
        "rep_size": 0,  # representation_size None
        "head_hidden": (),
        "head_activation": "gelu",  # idle
        "head_dropout": 0.0,
        "head_input_dropout": 0.0,
        "initialiser": "vit",
        **_RUNNING,
    }


def _token_learner(locations, fuse):
    """VARIANT 'B/16': num_tokens 16, tokenlearner_loc 9, use_v11, classifier 'gap'."""
    return {
        **_vit(16, 768, 3072, 12, 12, 0.0),
        "pool": "mean",
        "learner": "v11_mlp",
        "learner_at": locations,
        "learner_tokens": 16,
        "learner_hidden": 64,  # bottleneck_dim
        "fuse": fuse,  # use_tokenfuse
    }


AUTHORS = {
    **{name: _shiftvit(*size) for name, size in _SHIFTVIT.items()},
    **{name: _cct(*size) for name, size in _CCT.items()},
    **{name: _patches(size, seq_pool=name.startswith("cvt")) for name, size in _PATCHES.items()},
    **{name: _vit(*size) for name, size in _VIT.items()},
    "token_learner_vit_b16_224": _token_learner((9,), fuse=False),
    "token_learner_fuser_vit_b16_224": _token_learner((9, 10, 11), fuse=True),  # every layer from tokenlearner_loc on
}

# Where a name departs from its authors' configuration on purpose: what it has instead. models/vit.py says why.
_EXACT_GELU = {"activation": "gelu", "learner_activation": "gelu"}
DEPARTURES = {
    **dict.fromkeys((*_VIT, "token_learner_vit_b16_224", "token_learner_fuser_vit_b16_224"), _EXACT_GELU),
    "vit_l16_224": {**_EXACT_GELU, "dropout": 0.0},
}
