"""Handwritten digits, 8×8 grey, 1,797 real images that come with scikit-learn: the experiment that needs no download.

    jaxvit train --config=configs/digits.py --workdir=runs/digits
    jaxvit train --config=configs/digits.py:shiftvit --workdir=runs/digits-shiftvit

Variants: vit (default), token_learner, token_fuser, shiftvit, cct.
Expected: vit 97.5 % or more of the 360 test images, within 90 s of training on two CPU cores; each of the others 95 %.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config

_VIT = {"dim": 128, "heads": 4, "mlp_ratio": 2.0, "dropout": 0.1, "initialiser": "keras"}
MODELS = {
    "vit": ("vit", {**_VIT, "patch": 4, "depth": 3, "pool": "flatten"}),
    "token_learner": (
        "token_learner_vit",
        {**_VIT, "patch": 2, "depth": 3, "pool": "flatten", "learner_at": (2,), "learner_tokens": 8},
    ),
    "token_fuser": (
        "token_learner_vit",
        {**_VIT, "patch": 2, "depth": 3, "pool": "flatten", "learner_at": (1, 2), "learner_tokens": 4, "fuse": True},
    ),
    "shiftvit": ("shiftvit", {"patch": 1, "dim": 48, "depths": (2, 2), "dropout": 0.1}),
    "cct": ("cct", {"dim": 64, "depth": 2, "conv_layers": 1, "mlp_ratio": 2.0}),
}
VARIANTS = tuple(MODELS)


def get_config(variant: str = "vit") -> ConfigDict:
    model, attributes = MODELS[variant]
    config = base_config(model, **attributes)

    config.data.name = "digits"
    config.data.train = "train[:1257]"
    config.data.validation = "train[1257:]"

    config.augment.mean = (0.305,)  # of the training images
    config.augment.std = (0.376,)
    if variant == "vit":
        config.augment.mixup = 0.4
    else:
        config.augment.pad_crop = 1

    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0

    config.train.duration = {"vit": "80 epochs", "token_learner": "60 epochs"}.get(variant, "40 epochs")
    config.train.batch_size = 32
    config.train.steps_per_call = 20
    config.train.label_smoothing = 0.1
    config.train.monitor = "loss"  # finer than the accuracy on 180 images
    return config
