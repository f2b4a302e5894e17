"""Your own photos, or any small data set, from scratch: the config of `jaxvit train --data=…`.

    jaxvit train --data=photos                          photos/CLASS/IMAGE.jpg, or photos/train/CLASS/IMAGE.jpg etc.
    jaxvit train --data=labels.csv --folds=5            labels from a table; five-fold cross-validation
    jaxvit train --data=photos --config.model.depth=6   any value, set here or derived, can be changed

Image size, splits, batch size, duration, mean and std are derived from the images (jaxvit/config/for_images.py). The
values below apply without --data: with --config=photos, to the folder ./photos.

Variants, compared by benchmarks/photos_recipe.py (docs/photos.md has the accuracies):
  muon (default): CCT with random crops and flips, trained by Muon from mimetic attention.
  plain: the same by AdamW from the usual initial values.
  cct: plain with TrivialAugment, mixup, CutMix and random erasing.
  vit, shiftvit, token_learner: other models, with the recipe of cct.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config


def get_config(variant: str = "muon") -> ConfigDict:
    return EXPERIMENTS[variant]()


def cct() -> ConfigDict:
    config = base_config("cct", dim=128, depth=4, heads=4, mlp_ratio=2.0, conv_layers=3, dropout=0.1)
    return _train(config)


def plain() -> ConfigDict:
    config = cct()
    config.augment.policy, config.augment.erase = "", 0.0
    config.augment.mixup = config.augment.cutmix = 0.0
    return config


def muon() -> ConfigDict:
    config = plain()
    config.optim.name, config.init.attention = "muon", "mimetic"
    return config


def vit() -> ConfigDict:
    return _train(base_config("vit", patch=4, dim=128, depth=6, heads=4, mlp_ratio=2.0, dropout=0.1))


def token_learner() -> ConfigDict:
    sizes = {"patch": 4, "dim": 128, "depth": 6, "heads": 4, "mlp_ratio": 2.0, "dropout": 0.1}
    return _train(base_config("token_learner_vit", **sizes, learner_at=(3,), learner_tokens=8))


def shiftvit() -> ConfigDict:
    return _train(base_config("shiftvit", patch=2, dim=48, depths=(2, 4), dropout=0.1))


def _train(config: ConfigDict) -> ConfigDict:
    config.data.name = "image_folder:photos"
    config.data.side = 64
    config.data.cut = "content"
    config.data.validation, config.data.test = "validation", "test"
    config.data.on_error = "skip"  # collections of photos have damaged files: they are reported and counted

    config.augment.mean, config.augment.std = (), ()
    config.augment.train, config.augment.scale = "random_resized_crop", (0.5, 1.0)
    config.augment.flip = True
    config.augment.policy = "trivial"
    config.augment.erase = 0.25
    config.augment.mixup, config.augment.cutmix = 0.2, 1.0

    config.optim.peak_lr = 1e-3
    config.optim.warmup = "5%"
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    config.optim.ema_decay = 0.99

    config.train.duration = "100 epochs"
    config.train.batch_size = 32
    config.train.steps_per_call = 20
    config.train.label_smoothing = 0.1
    config.train.monitor = "loss"  # finer than the accuracy on a few images
    config.checkpoint.every = "10 epochs"
    return config


EXPERIMENTS = {
    "cct": cct,
    "plain": plain,
    "muon": muon,
    "vit": vit,
    "shiftvit": shiftvit,
    "token_learner": token_learner,
}
VARIANTS = tuple(EXPERIMENTS)
