"""ImageNet: the original recipes of the four model families, for users with the data and accelerators.

    jaxvit train --config=imagenet:vit_s16 --workdir=runs/vit-s16
    jaxvit reproduce imagenet_vit_s16            builds it, counts parameters, runs 3 steps on random images

Variants, with the top-1 accuracy of the source. We have not trained any of them:
  vit_s16: big_vision, configs/vit_s16_i1k.py; 76.5 % after 90 epochs.
  shiftvit_t: SPACH, main.py and README; 81.7 %.
  cct_14: Compact-Transformers, configs/pretrained/cct_14-7x2_imagenet.yml; 80.67 %.
  token_learner_b16: Scenic, configs/im1k_token_learner_config.py; accuracy not given.

Departures from the sources:
  all: images are decoded to 256×256 before random crops; warm-up comes before the schedule, not on top of it.
  vit_s16: RandAugment without Cutout; the first moment is float32.
  shiftvit_t: batch size 1,023 instead of 1,024; we test the EMA weights of the last step, SPACH reports the best epoch
    of the raw weights.
  cct_14: one interpolation filter; Compact-Transformers draws one for each image.
  token_learner_b16: softmax loss; Scenic uses a sigmoid for each class and a head bias that starts at -10.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config


def get_config(variant: str = "vit_s16") -> ConfigDict:
    return EXPERIMENTS[variant]()


def vit_s16() -> ConfigDict:
    theirs = {"activation": "gelu_tanh", "initialiser": "big_vision"}
    config = base_config("vit_s16_224", pool="mean", positions="sincos", rep_size=384, **theirs)
    _train_on_imagenet(config)
    config.data.train, config.data.validation = "train[:99%]", "train[99%:]"
    config.augment.mean, config.augment.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    config.augment.scale = (0.05, 1.0)
    config.augment.policy = "rand-m10-n2-p1"  # the source always applies both operations
    config.augment.mixup = 0.2
    config.optim.peak_lr, config.optim.warmup = 1e-3, "10000 steps"
    config.optim.weight_decay = 0.1  # the source's 1e-4 is not multiplied by the learning rate: 1e-4 / 1e-3
    config.optim.clip_norm = 1.0
    config.train.duration = "90 epochs"
    return config


def shiftvit_t() -> ConfigDict:
    config = base_config("shiftvit_tiny")
    _train_on_imagenet(config)
    _train_as_timm(config)
    config.train.duration = "300 epochs"  # SPACH stops before timm's ten cool-down epochs
    config.optim.peak_lr, config.optim.warmup = 1e-3, "20 epochs"
    config.optim.ema_decay, config.optim.ema_ramp = 0.99996, False
    config.augment.repeats, config.train.batch_size = 3, 1023  # all copies of an image are in one batch
    return config


def cct_14() -> ConfigDict:
    config = base_config("cct_14_7x2_224")
    _train_on_imagenet(config)
    _train_as_timm(config)
    config.train.duration = "310 epochs"
    config.optim.peak_lr, config.optim.warmup, config.optim.cooldown = 5e-4, "10 epochs", "10 epochs"
    config.augment.crop_fraction = 0.9
    config.optim.decay_mask = "not_1d"  # position embeddings decay too, unlike in timm's ViT
    return config


def token_learner_b16() -> ConfigDict:
    config = base_config("token_learner_vit_b16_224", activation="gelu_tanh", learner_activation="gelu_tanh")
    _train_on_imagenet(config)
    config.seed = 42
    config.data.train = "train"
    config.augment.interpolation = "bicubic"
    config.optim.schedule, config.optim.peak_lr, config.optim.end_lr = "linear", 5e-3, 1e-5
    config.optim.warmup = "10000 steps"
    config.optim.weight_decay, config.optim.decay_mask = 0.3, "all"
    config.optim.clip_norm = 1.0
    config.train.batch_size = 4096
    config.train.duration = "90 epochs"
    return config


def _train_on_imagenet(config: ConfigDict) -> None:
    config.data.name, config.data.side, config.data.feed = "imagenet2012", 256, "stream"
    config.data.test = "validation"
    config.augment.size = 224
    config.augment.train = "random_resized_crop"
    config.augment.evaluation, config.augment.crop_fraction = "crop_fraction", 0.875
    config.augment.mean, config.augment.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.augment.flip = True
    config.train.batch_size = 1024
    config.train.last_batch = "drop"


def _train_as_timm(config: ConfigDict) -> None:
    """Settings shared by the two timm-based recipes. With an augmentation policy, timm uses no colour jitter."""
    config.data.train = "train"
    config.augment.interpolation = "bicubic"
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.mixup, config.augment.cutmix = 0.8, 1.0
    config.augment.erase = 0.25
    config.optim.start_lr, config.optim.end_lr = 1e-6, 1e-5
    config.optim.weight_decay = 0.05
    config.train.label_smoothing = 0.1
    config.model.dtype = "bfloat16"


EXPERIMENTS = {
    "vit_s16": vit_s16,
    "shiftvit_t": shiftvit_t,
    "cct_14": cct_14,
    "token_learner_b16": token_learner_b16,
}
VARIANTS = tuple(EXPERIMENTS)
