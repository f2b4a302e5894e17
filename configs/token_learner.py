"""TokenLearner: after which block, and with how many tokens. Two grids for `jaxvit sweep`.

    jaxvit sweep --config=token_learner:place --workdir=sweeps/place       CIFAR-10
    jaxvit sweep --config=token_learner:tokens --workdir=sweeps/tokens
    jaxvit sweep --config=token_learner:place_digits --workdir=sweeps/p    minutes on two CPU cores
    jaxvit sweep --config=token_learner:place --dry_run                    print the cells and their sizes

Source: Ryoo et al. (2021). After a quarter of the blocks, TokenLearner leaves less than a third of the multiply-adds;
after half of them, no accuracy is lost; 8 or 16 tokens do as well as all 196. Expected: accuracy and multiply-adds grow
with the position; more than 8 tokens gain little.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.data.preparable import PREPARABLE

CIFAR10 = PREPARABLE["cifar10"]
_MODEL = {
    **{"depth": 8, "heads": 4, "learner_at": (4,), "learner_tokens": 4},
    **{"pool": "mean", "mlp_ratio": 2.0, "dropout": 0.1},
}
PLACES = {"model.learner_at": ((2,), (4,), (6,), (7,))}
TOKENS = {"model.learner_tokens": (2, 4, 8, 16)}
GRIDS = {"place": PLACES, "tokens": TOKENS, "place_digits": PLACES, "tokens_digits": TOKENS}


def get_grid(variant: str = "place") -> dict[str, tuple]:
    return GRIDS[variant]


def get_config(variant: str = "place") -> ConfigDict:
    return EXPERIMENTS[variant]()


def cifar10() -> ConfigDict:
    config = base_config("token_learner_vit", **_MODEL, patch=4, dim=128)
    config.data.name = "cifar10"
    config.data.train, config.data.validation = "train[:45000]", "train[45000:]"
    config.augment.mean, config.augment.std = CIFAR10.mean, CIFAR10.std
    config.augment.pad_crop, config.augment.flip = 4, True
    config.train.duration = "20 epochs"
    config.train.batch_size = 128
    _regularise(config)
    return config


def digits() -> ConfigDict:
    config = base_config("token_learner_vit", **_MODEL, patch=1, dim=64)
    config.data.name = "digits"
    config.data.train, config.data.validation = "train[:1257]", "train[1257:]"
    config.augment.mean, config.augment.std = (0.305,), (0.376,)
    config.augment.pad_crop = 1
    config.train.duration = "40 epochs"
    config.train.batch_size = 32
    _regularise(config)
    return config


def _regularise(config: ConfigDict) -> None:
    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.train.label_smoothing = 0.1
    config.train.steps_per_call = 20


# Both grids of a data set share its config.
EXPERIMENTS = {"place": cifar10, "tokens": cifar10, "place_digits": digits, "tokens_digits": digits}
VARIANTS = tuple(EXPERIMENTS)
