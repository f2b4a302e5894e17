"""Fine-tuning: a model with the weights of a run or of a published file, for your own photos or any data set.

    jaxvit train --data=photos --config=finetune --config.init.from=runs/cifar10
    jaxvit train --data=photos --config=finetune --config.init.from=vit.safetensors --config.optim.freeze='*/embed*'
    jaxvit train --config=finetune:head --data=photos --config.init.from=runs/cifar10

The model, its attributes, mean and standard deviation are those of the weights; learning rate and layer decay go by its
width (jaxvit/config/initial_weights.py); image size, splits, batch size and duration go by the images
(jaxvit/config/for_images.py). Any value can be changed.

Variants: whole (default); head (only the head is trained); head_first (the head alone for the first tenth).
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import SOURCE, base_config


def get_config(variant: str = "whole") -> ConfigDict:
    return EXPERIMENTS[variant]()


def whole() -> ConfigDict:
    config = base_config(SOURCE)
    config.data.name = "image_folder:photos"
    config.data.side = 224
    config.data.cut = "content"
    config.data.validation, config.data.test = "validation", "test"
    config.data.on_error = "skip"

    config.augment.mean, config.augment.std = (), ()  # () = those of the weights
    config.augment.train, config.augment.scale = "random_resized_crop", (0.5, 1.0)
    config.augment.flip = True

    config.optim.warmup = "10%"
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0

    config.train.duration = "10 epochs"
    config.train.batch_size = 32
    config.train.steps_per_call = 20
    config.train.label_smoothing = 0.1
    config.train.monitor = "loss"
    return config


def head() -> ConfigDict:
    config = whole()
    config.optim.freeze = "!head/*"
    config.optim.peak_lr = 3e-3
    return config


def head_first() -> ConfigDict:
    config = whole()
    config.optim.head_first = "10%"
    return config


EXPERIMENTS = {"whole": whole, "head": head, "head_first": head_first}
VARIANTS = tuple(EXPERIMENTS)
