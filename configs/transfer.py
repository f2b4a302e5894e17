"""Transfer to few images: small models trained on 90 classes of CIFAR-100, or on CIFAR-10, learn ten other classes.

    jaxvit reproduce transfer                       all runs and the table, results/transfer.md
    jaxvit train --config=transfer:cifar100_vit_pretrain --workdir=runs/pretrain
    jaxvit train --config=transfer:cifar100_vit_finetune --workdir=runs/tuned --config.init.from=runs/pretrain
    jaxvit train --config=transfer:cifar100_vit_scratch --workdir=runs/scratch

Variants: TASK_MODEL_WAY. Tasks: cifar100 (from 90 of its classes to the ten left out, LEFT_OUT), fashion (from CIFAR-10
to Fashion-MNIST). Models: vit, cct, shiftvit. Ways: pretrain; finetune and scratch, on data.per_class images of each
class, with the same number of steps. The last weights are tested. Learning rates were not tuned.
"""

from itertools import product

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.data.preparable import PREPARABLE

LEFT_OUT = tuple(range(0, 100, 10))  # apple, bowl, chair, dolphin, lamp, mouse, plain, rose, squirrel, train
MODELS = {
    "vit": {"patch": 4, "dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0},
    "cct": {"dim": 64, "depth": 3, "heads": 4, "conv_layers": 2, "conv_width": 32, "mlp_ratio": 2.0},
    "shiftvit": {"patch": 4, "dim": 64, "depths": (2, 4), "divisions": 8},
}
TASKS = ("cifar100", "fashion")
WAYS = ("pretrain", "finetune", "scratch")
STEPS = {10: 100, 50: 200, 450: 400}  # images of each class: steps


def get_config(variant: str = "cifar100_vit_pretrain") -> ConfigDict:
    return EXPERIMENTS[variant]()


def experiment(task: str, model: str, way: str) -> ConfigDict:
    config = base_config(model, **MODELS[model])
    config.data.side = 32
    config.data.validation = ""
    config.optim.warmup = "10%"
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    config.train.label_smoothing = 0.1
    config.train.steps_per_call = 20
    config.checkpoint.every = "100 epochs"
    config.augment.pad_crop, config.augment.flip = 4, True
    if way == "pretrain":
        _pretrain(config, task)
    else:
        _few_images(config, task)
    if way == "finetune":
        config.optim.peak_lr, config.optim.layer_decay = 5e-4, 0.9
    return config


def _pretrain(config: ConfigDict, task: str) -> None:
    _normalise_by(config, "cifar100" if task == "cifar100" else "cifar10")
    if task == "cifar100":
        config.data.classes = tuple(sorted(set(range(100)) - set(LEFT_OUT)))
    config.train.batch_size = 128
    config.train.duration = "4 epochs" if task == "cifar100" else "3 epochs"


def _few_images(config: ConfigDict, task: str) -> None:
    _normalise_by(config, "cifar100" if task == "cifar100" else "fashion_mnist")
    if task == "cifar100":
        config.data.classes = LEFT_OUT
    config.data.per_class = 10
    config.train.batch_size = 32
    config.train.duration = f"{STEPS[10]} steps"


def _normalise_by(config: ConfigDict, name: str) -> None:
    config.data.name = name
    config.augment.mean, config.augment.std = PREPARABLE[name].mean, PREPARABLE[name].std


EXPERIMENTS = {
    f"{task}_{model}_{way}": lambda task=task, model=model, way=way: experiment(task, model, way)
    for task, model, way in product(TASKS, MODELS, WAYS)
}
VARIANTS = tuple(EXPERIMENTS)
