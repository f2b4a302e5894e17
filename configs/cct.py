"""CCT: how many convolutions in its tokenizer, and how many layers in its encoder. A grid for `jaxvit sweep`.

    jaxvit sweep --config=configs/cct.py --workdir=sweeps/cct           CIFAR-10
    jaxvit sweep --config=configs/cct.py:digits --workdir=sweeps/c      minutes on two CPU cores

Source: Hassani et al. (2021), table 2, and the Keras document's closing questions. Expected: a second convolution helps
more than further layers.
"""

from ml_collections import ConfigDict

from jaxvit.config import base_config

VARIANTS = ("cifar10", "digits")


def get_grid(variant: str = "cifar10") -> dict[str, tuple]:
    del variant  # the same for both
    return {"model.depth": (2, 4, 7), "model.conv_layers": (1, 2)}


def get_config(variant: str = "cifar10") -> ConfigDict:
    if variant == "digits":
        config = base_config("cct", dim=64, depth=2, conv_layers=1, mlp_ratio=2.0)
        config.data.name = "digits"
        config.data.train, config.data.validation = "train[:1257]", "train[1257:]"
        config.augment.mean, config.augment.std = (0.305,), (0.376,)
        config.augment.pad_crop = 1
        config.train.duration = "30 epochs"
        config.train.batch_size = 32
    else:
        config = base_config("cct", dim=128, depth=2, conv_layers=2, mlp_ratio=1.0)
        config.data.name = "cifar10"
        config.data.train, config.data.validation = "train[:45000]", "train[45000:]"
        config.augment.mean, config.augment.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        config.augment.pad_crop, config.augment.flip = 4, True
        config.train.duration = "20 epochs"
        config.train.batch_size = 128
    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.06
    config.optim.clip_norm = 1.0
    config.train.label_smoothing = 0.1
    config.train.steps_per_call = 20
    return config
