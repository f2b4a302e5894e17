"""CCT on CIFAR-10: a sweep over convolutions and depth, and the Keras document's CCT.

    jaxvit sweep --config=cct --workdir=sweeps/cct           CIFAR-10
    jaxvit sweep --config=cct:digits --workdir=sweeps/c      minutes on two CPU cores
    jaxvit train --config=cct:document --workdir=runs/cct
    jaxvit train --config=cct:authors --workdir=runs/cct-7         300 epochs, for a GPU

Variants:
  cifar10 (default), digits: the base configs of the sweep. Source: Hassani et al. (2021), table 2, and the document's
    closing questions. Expected: a second convolution helps more than further layers.
  document: the document's model and recipe: 30 epochs, horizontal flips only, AdamW at a constant rate, with decay of
    all weights independent of the rate. Source: 77.61 % top-1, 98.44 % top-5.
  best: the same model and epochs, with crops, warm-up and cosine schedule, without dropout.
  vit: the document's baseline, a ViT of 4.7 million parameters that reached 78.22 % after 100 epochs. The document says
    no more about it; sizes and recipe are ours.
  authors: the recipe for CCT-7/3x1 in configs/pretrained/cct_7-3x1_cifar10_300epochs.yml of
    SHI-Labs/Compact-Transformers: 96.53 %.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.data.preparable import PREPARABLE

CIFAR10 = PREPARABLE["cifar10"]


def get_grid(variant: str = "cifar10") -> dict[str, tuple]:
    del variant  # all variants share the grid
    return {"model.depth": (2, 4, 7), "model.conv_layers": (1, 2)}


def get_config(variant: str = "cifar10") -> ConfigDict:
    return EXPERIMENTS[variant]()


def cifar10() -> ConfigDict:
    config = base_config("cct", dim=128, depth=2, conv_layers=2, mlp_ratio=1.0)
    _crop_cifar10(config, images=45000)
    _regularise(config)
    config.train.duration = "20 epochs"
    return config


def digits() -> ConfigDict:
    config = base_config("cct", dim=64, depth=2, conv_layers=1, mlp_ratio=2.0)
    config.data.name = "digits"
    config.data.train, config.data.validation = "train[:1257]", "train[1257:]"
    config.augment.mean, config.augment.std = (0.305,), (0.376,)
    config.augment.pad_crop = 1
    _regularise(config)
    config.train.duration = "30 epochs"
    config.train.batch_size = 32
    return config


def document() -> ConfigDict:
    config = base_config("tutorial_cct", frozen_positions=True)
    _train_as_the_document(config)
    config.train.duration = "30 epochs"
    return config


def best() -> ConfigDict:
    # 30 epochs do not overfit, so there is no dropout.
    config = base_config("tutorial_cct", dropout=0.0, attention_dropout=0.0, drop_path=0.0)
    _crop_cifar10(config, images=48000)
    _regularise(config)
    config.optim.peak_lr = 2e-3
    config.train.duration = "30 epochs"
    return config


def vit() -> ConfigDict:
    config = base_config("vit", dim=256, depth=6, heads=8, patch=4, dropout=0.1)
    _train_as_the_document(config)
    config.train.duration = "100 epochs"
    return config


def authors() -> ConfigDict:
    config = base_config("cct_7_3x1_32")
    config.data.name = "cifar10"  # all training images; the last weights are tested
    config.augment.mean, config.augment.std = CIFAR10.mean, CIFAR10.std
    config.augment.train, config.augment.scale = "random_resized_crop", (0.8, 1.0)
    config.augment.interpolation = "bicubic"
    config.augment.flip = True
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.mixup, config.augment.cutmix, config.augment.mix_until = 0.8, 1.0, "175 epochs"
    config.optim.peak_lr, config.optim.start_lr, config.optim.end_lr = 5.5e-4, 1e-5, 1e-5
    config.optim.warmup, config.optim.cooldown = "10 epochs", "10 epochs"
    config.optim.weight_decay, config.optim.decay_mask = 0.06, "not_1d"
    config.train.label_smoothing = 0.1
    config.train.duration = "310 epochs"
    config.train.batch_size = 128
    config.train.last_batch = "drop"
    config.train.steps_per_call = 20
    config.model.dtype = "bfloat16"
    return config


def _crop_cifar10(config: ConfigDict, images: int) -> None:
    config.data.name = "cifar10"
    config.data.train, config.data.validation = f"train[:{images}]", f"train[{images}:]"
    config.augment.mean, config.augment.std = CIFAR10.mean, CIFAR10.std
    config.augment.pad_crop, config.augment.flip = 4, True
    config.train.batch_size = 128


def _regularise(config: ConfigDict) -> None:
    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.06
    config.optim.clip_norm = 1.0
    config.train.label_smoothing = 0.1
    config.train.steps_per_call = 20


def _train_as_the_document(config: ConfigDict) -> None:
    config.data.name = "cifar10"
    config.data.train, config.data.validation = "train[:45000]", "train[45000:]"
    config.augment.flip = True
    config.optim.schedule, config.optim.warmup = "constant", "0 steps"
    config.optim.decay, config.optim.decay_mask, config.optim.eps = "independent", "all", 1e-7
    config.train.label_smoothing = 0.1
    config.train.batch_size = 128


EXPERIMENTS = {
    "cifar10": cifar10,
    "digits": digits,
    "document": document,
    "best": best,
    "vit": vit,
    "authors": authors,
}
VARIANTS = tuple(EXPERIMENTS)
