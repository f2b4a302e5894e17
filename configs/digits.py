"""Handwritten digits, 8×8 grey, 1,797 real images that come with scikit-learn: the experiment that needs no download.

    jaxvit train --config=configs/digits.py --workdir=runs/digits

Expected: 97.5 % or more of the 360 test images, within 90 s of training on two CPU cores.
"""

from ml_collections import ConfigDict

from jaxvit.config import base_config


def get_config() -> ConfigDict:
    config = base_config("vit", patch=4, dim=128, depth=3, heads=4, mlp_ratio=2.0, pool="flatten", initialiser="keras")
    config.model.dropout = 0.1

    config.data.name = "digits"
    config.data.train = "train[:1257]"
    config.data.validation = "train[1257:]"

    config.augment.mean = (0.305,)  # of the training images
    config.augment.std = (0.376,)
    config.augment.pad_crop = 1

    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0

    config.train.duration = "80 epochs"
    config.train.batch_size = 32
    config.train.label_smoothing = 0.1
    config.train.monitor = "loss"  # finer than the accuracy on 180 images
    return config
