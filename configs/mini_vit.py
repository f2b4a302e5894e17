"""CIFAR-10: the mini ViT of the Keras document on TokenLearner, without and with learned tokens.

    jaxvit train --config=configs/mini_vit.py:tl4 --workdir=runs/mini-tl4
    jaxvit train --config=configs/mini_vit.py:tl4_best --workdir=runs/mini-best
    jaxvit train --config=configs/mini_vit.py:tl4_1epoch --workdir=runs/mini-1

Variants: plain, tl4, tl8, 8l and the three of version 1.1, v11_g4t4, v11_g8t8, v11_g4t8, as the document has them:
40,000 images, resized to 52, cropped to 48 and mirrored, AdamW at a constant rate with decay of all weights that does
not depend on it, 20 epochs. With _best behind: the same model and epochs, 48,000 images in batches of 128 as random
windows, normalised, nothing dropped, with warm-up and cosine.
tl4_1epoch: the one epoch that the document shows, with Keras 3's AdamW, whose decay is times the rate.
Source: the document's table of 20 epochs, means of five runs: 56.11 and 56.37 % (plain), 56.50 (tl4), 56.55 (tl8),
55.36 (8l); and its table of version 1.1, of how many runs it does not say: 54.64, 54.90 and 55.20.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config

MODELS = {
    "plain": "tutorial_mini_vit",
    **{name: f"tutorial_mini_vit_{name}" for name in ("tl4", "tl8", "8l", "v11_g4t4", "v11_g8t8", "v11_g4t8")},
}
VARIANTS = (*(f"{model}{kind}" for model in MODELS for kind in ("", "_best")), "tl4_1epoch")


def get_config(variant: str = "tl4") -> ConfigDict:
    best, one_epoch = variant.endswith("_best"), variant.endswith("_1epoch")
    config = base_config(MODELS[variant.removesuffix("_best").removesuffix("_1epoch")])
    config.data.name = "cifar10"
    config.augment.size = 48
    config.augment.flip = True
    config.train.duration = "1 epochs" if one_epoch else "20 epochs"
    config.train.batch_size = 128 if best else 256
    if best:
        config.data.train, config.data.validation = "train[:48000]", "train[48000:]"
        config.augment.mean, config.augment.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        config.augment.train, config.augment.scale = "random_resized_crop", (0.6, 1.0)
        config.optim.peak_lr = 1e-3
        config.optim.weight_decay = 0.05
        config.optim.clip_norm = 1.0
        config.model.dropout = config.model.attention_dropout = 0.0
    else:
        config.data.train, config.data.validation = "train[:40000]", "train[40000:]"
        config.augment.train, config.augment.resize = "resize_crop", 52
        config.augment.crop_position = "batch"
        config.optim.schedule, config.optim.warmup = "constant", "0 steps"
        config.optim.decay, config.optim.decay_mask = "lr_scaled" if one_epoch else "independent", "all"
        config.optim.eps = 1e-7
    return config
