"""Fashion-MNIST: the ViT of the Scale Events article, and its faster sister with a TokenLearner.

    jaxvit train --config=configs/fashion_mnist.py:fast --workdir=runs/fashion-fast
    jaxvit train --config=configs/fashion_mnist.py:fast_best --workdir=runs/fashion-best

Variants: vit, fast = as the article has it: four classes, pixels from 0 to 255, Adam at a constant rate, 6 epochs, the
last third of the training images for validation. vit_10, fast_10: all ten classes. vit_best, fast_best: the same models
and epochs with normalised pixels, mirrored, enlarged to 30 so that 36 patches of 5x5 cover all of the image (the
article's 25 patches leave out three rows and columns), AdamW with warm-up and cosine, averaged weights, and all images
to train on. vit_30, fast_30: these for 30 epochs, with random windows, a longer average, and 2,000 images to validate.
Source: its test accuracies are .8315 (vit) and .92475 (fast), with the weights of the last epoch.
"""

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config

MODELS = {"vit": "tutorial_fashion_vit", "fast": "tutorial_fashion_fast_vit"}
VARIANTS = tuple(f"{model}{kind}" for model in MODELS for kind in ("", "_10", "_best", "_30"))


def get_config(variant: str = "fast") -> ConfigDict:
    model, _, kind = variant.partition("_")
    config = base_config(MODELS[model])
    config.data.name = "fashion_mnist"
    if kind != "10":
        config.data.classes = (0, 1, 2, 3)
    config.train.duration = "30 epochs" if kind == "30" else "6 epochs"
    config.train.batch_size = 32
    if kind in ("best", "30"):
        if kind == "best":  # the weights are the average at the end: validation would choose nothing
            config.data.train, config.data.validation = "train", ""
        else:
            config.data.train, config.data.validation = "train[:-2000]", "train[-2000:]"
        config.augment.mean, config.augment.std = (0.286,), (0.353,)
        config.augment.flip = True
        config.augment.size = 30
        if kind == "30":
            config.augment.train, config.augment.scale = "random_resized_crop", (0.8, 1.0)
            config.augment.ratio = (0.85, 1.18)
        config.optim.peak_lr = 5e-4
        config.optim.ema_decay = 0.999 if kind == "30" else 0.998
        config.optim.weight_decay = 0.05
        config.optim.clip_norm = 1.0
    else:
        # Keras floors 24,000 (60,000) times 1 - .33 to these.
        split = 40199 if kind == "10" else 16079
        config.data.train, config.data.validation = f"train[:{split}]", f"train[{split}:]"
        config.augment.std = (1 / 255,)  # pixels stay at 0..255
        config.optim.name, config.optim.eps = "adam", 1e-7
        config.optim.schedule, config.optim.warmup = "constant", "0 steps"
        config.optim.weight_decay = 0.0
        config.train.ways = "plain"  # the article's ratio of times is of attention that projects
    return config
