"""Every config key of an experiment: default, unit and meaning.

`jaxvit train --help` prints this table. A config holds inputs only, nothing derived from them: `jaxvit.config.plan`
computes steps, splits and per-device batches. Durations are strings ('30 epochs', '2000 steps', '15%'). Sequences are
tuples, and an unset value is '', 0 or (), because the command line can override those types.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxvit.config.plan_types import DistillPlan, InitPlan
from jaxvit.data.settings import Augmentation
from jaxvit.training.settings import OptimizerSettings

Value = bool | int | float | str | tuple


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
      default: value if the config file sets none. Its type is the type of the key.
      meaning: what the key sets, with its unit and allowed values, for the help text.
      changes_result: whether two runs that differ only in this key can have different results. Only such keys enter the
        config hash, and only they must match when a run folder is used again.
      added: whether the key is younger than the first recorded config hashes. Such a key enters the hash only if its
        value is not the default. True for every new key.
    """

    default: Value
    meaning: str
    changes_result: bool = True
    added: bool = False


# The settings that the keys become hold their defaults, so that each default is written once.
_AUGMENT, _OPTIM, _INIT, _DISTILL = Augmentation(), OptimizerSettings(), InitPlan(), DistillPlan()

KEYS: dict[str, Key] = {
    "seed": Key(0, "seed of all random numbers of the run: parameters, order of images, augmentation, dropout"),
    "seeds": Key((), "seeds of several runs, whose results are averaged; () = one run, with `seed`"),
    # Data.
    "data.name": Key(
        "digits",
        "data set: a TFDS name, 'image_folder:PATH', 'image_table:FILE', 'tar:PATTERN', 'parquet:PATTERN' or "
        "'package.module:function'",
    ),
    "data.dir": Key(
        "",
        "folder of TFDS data sets; '' = the environment variable TFDS_DATA_DIR, or else ~/tensorflow_datasets",
        changes_result=False,
    ),
    "data.classes": Key((), "numbers of the classes to keep, renumbered in this order; () = all classes"),
    "data.side": Key(
        0, "resize the shorter side to this many pixels and crop the centre when decoding; 0 = the stored size"
    ),
    "data.on_error": Key("stop", "if an image cannot be decoded: 'stop' ends the run and names it, 'skip' omits it"),
    "data.max_pixels": Key(
        80_000_000,
        "largest stored image in pixels (height × width); a larger one counts as one that cannot be decoded",
        changes_result=False,
        added=True,
    ),
    "data.max_bytes": Key(
        1 << 28,
        "largest image file of a folder in bytes; a larger one counts as one that cannot be decoded",
        changes_result=False,
        added=True,
    ),
    "data.white": Key(
        0,
        "white value of images of more than 8 bits, such as 4095 for a 12-bit camera; 0 = 65535, and images of 32 "
        "bits are refused",
        added=True,
    ),
    "data.feed": Key(
        "auto",
        "'resident' keeps the training images on the devices, 'stream' sends batches, 'auto' chooses by their size",
        changes_result=False,
    ),
    "data.workers": Key(
        0,
        "processes that decode a split that is too large to be kept decoded: 0 = threads on up to 4 cores, else a "
        "process for each core; -1 = threads",
        changes_result=False,
        added=True,
    ),
    "data.train": Key("train", "training split in TFDS notation, such as 'train[:90%]'"),
    "data.validation": Key(
        "", "validation split, for choosing the best checkpoint and for early stopping; '' = none, use the last one"
    ),
    "data.test": Key("test", "test split, evaluated once after training with the chosen checkpoint; '' = none"),
    "data.cut": Key(
        "",
        "'content' cuts the validation and test splits that the set lacks off train: a tenth of each class each, with "
        "copies of an image in the same split; '' = only the set's own splits",
        added=True,
    ),
    "data.folds": Key(
        0,
        "cross-validation: cut train (and validation) into this many folds and train a run for each, with that fold as "
        "the test split; 0 = none",
        added=True,
    ),
    "data.fold": Key(-1, "the only fold to train, from 0; -1 = all folds", added=True),
    "data.per_class": Key(
        0,
        "train on only this many images of each class, drawn by data.draw; 0 = on all images of data.train",
        added=True,
    ),
    "data.draw": Key(
        0,
        "for data.per_class: number of the draw; a larger data.per_class has all images of a smaller one",
        added=True,
    ),
    "data.balance": Key(
        "none",
        "for classes of unequal size: 'sampling' draws images of rare classes more often, 'loss' gives them a larger "
        "weight, 'none'",
        added=True,
    ),
    "data.balance_by": Key(
        "inverse",
        "weight of a class: the 'inverse' of its number of images, or of their 'effective' number",
        added=True,
    ),
    "data.balance_beta": Key(
        0.999,
        "for 'effective': β; n images count as (1 - β^n) / (1 - β), close to n for β near 1, and 1 for β = 0",
        added=True,
    ),
    # Augmentation: a separate random choice for each image, in the order of jaxvit.data.augment.
    "augment.mean": Key(
        _AUGMENT.mean,
        "mean of each channel to subtract, in the pixel range 0..1; () = measure it on the training images",
    ),
    "augment.std": Key(
        _AUGMENT.std, "standard deviation of each channel to divide by; () = measure it on the training images"
    ),
    "augment.train": Key(
        _AUGMENT.train,
        "size of training images: 'whole' image, 'resize_crop' (resize, random crop) or 'random_resized_crop'",
    ),
    "augment.evaluation": Key(
        _AUGMENT.evaluation,
        "size of evaluation images: 'whole' image, 'centre_crop' (after augment.resize) or 'crop_fraction'",
    ),
    "augment.size": Key(_AUGMENT.size, "side of the model's input in pixels; 0 = the image's own size"),
    "augment.resize": Key(
        _AUGMENT.resize, "side in pixels to resize to before 'resize_crop' and 'centre_crop'; 0 = do not resize"
    ),
    "augment.crop_position": Key(
        _AUGMENT.crop_position, "position of 'resize_crop': one for each 'image', or one for the whole 'batch'"
    ),
    "augment.crop_fraction": Key(
        _AUGMENT.crop_fraction,
        "for 'crop_fraction': resize the shorter side to augment.size divided by this, then crop the centre",
    ),
    "augment.scale": Key(
        _AUGMENT.scale, "for 'random_resized_crop': range of the crop's area, as a share of the image"
    ),
    "augment.ratio": Key(_AUGMENT.ratio, "for 'random_resized_crop': range of the crop's aspect ratio, width / height"),
    "augment.interpolation": Key(
        _AUGMENT.interpolation, "interpolation for resizing: 'bilinear', 'bicubic' or 'nearest'"
    ),
    "augment.pad_crop": Key(
        _AUGMENT.pad_crop, "pad every side with this many zero pixels, then crop the image size at random; 0 = off"
    ),
    "augment.flip": Key(_AUGMENT.flip, "mirror training images left to right with probability 1/2"),
    "augment.flip_mode": Key(
        _AUGMENT.flip_mode,
        "'random' = a new random choice in every epoch; 'alternate' = random in the first, then every second epoch",
        added=True,
    ),
    "augment.rotation": Key(
        _AUGMENT.rotation, "largest rotation in either direction, as a share of a full turn; 0 = off"
    ),
    "augment.zoom": Key(_AUGMENT.zoom, "largest change of height and of width, as a share of each; 0 = off"),
    "augment.fill": Key(
        _AUGMENT.fill, "pixels outside the image for rotation and zoom: 'reflect', 'edge' (repeat it) or 'zero'"
    ),
    "augment.policy": Key(
        _AUGMENT.policy,
        "'autoaugment-cifar10', 'autoaugment-imagenet', 'trivial', RandAugment as 'rand-m9-n2-mstd0.5-inc1'; '' = none",
    ),
    "augment.jitter": Key(
        _AUGMENT.jitter,
        "strength of (brightness, contrast, saturation, hue) jitter, such as (0.4, 0.4, 0.4, 0.1); () = off",
    ),
    "augment.own": Key(
        _AUGMENT.own,
        "your own 'package.module:function', (key, image float32 [H, W, C] in 0..1) -> image, before normalisation",
    ),
    "augment.erase": Key(_AUGMENT.erase, "probability of random erasing, which overwrites a rectangle; 0 = off"),
    "augment.erase_mode": Key(
        _AUGMENT.erase_mode, "what random erasing writes: 'noise' (standard normal) or 'zero' (the mean colour)"
    ),
    "augment.mixup": Key(_AUGMENT.mixup, "α of mixup's Beta(α, α) distribution; 0 = off"),
    "augment.cutmix": Key(_AUGMENT.cutmix, "α of CutMix's Beta(α, α) distribution; 0 = off"),
    "augment.switch": Key(_AUGMENT.switch, "probability of CutMix instead of mixup if both are on"),
    "augment.mix_probability": Key(_AUGMENT.mix_probability, "probability that mixup or CutMix changes an image"),
    "augment.mix_until": Key(
        "", "end of mixup and CutMix: epochs, steps or a share of the training; '' = the end of the training"
    ),
    "augment.repeats": Key(
        _AUGMENT.repeats, "repeated augmentation: number of copies of each image in a batch, augmented separately"
    ),
    "augment.where": Key(
        _AUGMENT.where, "where crops, flips, rotation and zoom run: on the 'device', or on the 'host' during the step"
    ),
    # Initial values that follow a formula. model.initialiser sets all others.
    "init.attention": Key(
        _INIT.attention,
        "mimetic initialisation of self-attention: 'mimetic' (per head) or 'mimetic_joint' (value and output of all "
        "heads together, as in the paper); '' = as model.initialiser",
        added=True,
    ),
    "init.query_key": Key(
        _INIT.query_key, "mimetic initialisation: (a, b) in Wq Wkᵀ = a × noise + b × identity, per head", added=True
    ),
    "init.value_output": Key(
        _INIT.value_output,
        "mimetic initialisation: (a, b) in Wv Wo = (a × noise - b × identity) / heads, per head; for 'mimetic_joint' "
        "in the sum over the heads, without the division",
        added=True,
    ),
    "init.positions": Key(
        _INIT.positions,
        "initial values of a learned position table: 'sincos' (the two-dimensional one); '' = as model.initialiser",
        added=True,
    ),
    "init.positions_scale": Key(_INIT.positions_scale, "factor of the initial 'sincos' table", added=True),
    "init.stem": Key(
        _INIT.stem,
        "initial filters of the first layer: 'whitening' (of training patches, with their negatives if there is room); "
        "'' = as model.initialiser",
        added=True,
    ),
    "init.stem_eps": Key(
        _INIT.stem_eps, "whitening: added to the variances of the patches, in squared normalised pixels", added=True
    ),
    "init.stem_images": Key(
        _INIT.stem_images, "whitening: number of training images to measure, spread over the split", added=True
    ),
    # A teacher.
    "distill.from": Key(
        _DISTILL.source,
        "folder of a trained run whose answers this one learns too; '' = none. It sees the same augmented images, so "
        "classes, image size, mean and std must be the same",
        changes_result=False,
        added=True,
    ),
    "distill.hash": Key(
        _DISTILL.hash, "hash of the teacher's weights; filled in; others are refused where it is given", added=True
    ),
    "distill.weight": Key(
        _DISTILL.weight,
        "share of the teacher's answers in the loss, 0 to 1: (1 - weight) × cross-entropy + weight × divergence",
        added=True,
    ),
    "distill.temperature": Key(
        _DISTILL.temperature,
        "temperature that softens both answers; the divergence is multiplied by its square",
        added=True,
    ),
    "distill.features": Key(
        _DISTILL.features,
        "weight of 1 - cosine of the features before the two heads, added to the loss; needs equally many",
        added=True,
    ),
    "init.from": Key(
        _INIT.source,
        "weights to start from: a run's or an exported folder, a file of another project, or 'hf://owner/name'; '' = "
        "none",
        changes_result=False,
        added=True,
    ),
    "init.hash": Key(
        _INIT.hash, "hash of the weights of init.from; filled in; others are refused where it is given", added=True
    ),
    "init.keep": Key(
        _INIT.keep, "patterns of parameters to take from init.from, separated by '|'; '' = all of them", added=True
    ),
    "init.skip": Key(_INIT.skip, "patterns of parameters not to take from init.from, such as 'head/*'", added=True),
    "init.allow": Key(
        _INIT.allow,
        "patterns of parameters that may be missing, left over or of another shape in init.from",
        added=True,
    ),
    "init.channels": Key(
        _INIT.channels,
        "for images of another number of channels than in init.from: 'sum' or 'mean' of the first layer's channels",
        added=True,
    ),
    # Optimisation.
    "optim.name": Key(
        _OPTIM.name, "optimizer: 'adamw', 'adam', 'sgd' (with momentum), 'lion', 'muon' or 'package.module:function'"
    ),
    "optim.peak_lr": Key(_OPTIM.peak_lr, "learning rate at the end of the warm-up"),
    "optim.start_lr": Key(_OPTIM.start_lr, "learning rate at step 0, if there is a warm-up"),
    "optim.end_lr": Key(_OPTIM.end_lr, "learning rate at the end of the schedule and after it"),
    "optim.warmup": Key("10%", "length of the linear warm-up: epochs, steps or a share of the schedule"),
    "optim.schedule": Key(
        _OPTIM.schedule,
        "learning rate from the peak to the end: 'cosine', 'linear', 'constant' or 'package.module:function'",
    ),
    "optim.length": Key("100%", "length of the schedule with its warm-up: epochs, steps or a share of the training"),
    "optim.cooldown": Key(
        "0 steps", "last part of the schedule, which stays at end_lr (or falls to it if the schedule is 'constant')"
    ),
    "optim.weight_decay": Key(_OPTIM.weight_decay, "decoupled weight decay; optim.decay sets its unit; 0 = off"),
    "optim.decay": Key(
        _OPTIM.decay,
        "weight decay per step: 'lr_scaled' (times the learning rate, optax, Keras 3) or 'independent' "
        "(tensorflow-addons)",
    ),
    "optim.decay_mask": Key(
        _OPTIM.decay_mask,
        "parameters with weight decay: 'kernels' (matrices only), 'all' or 'not_1d' (all but vectors and biases, so "
        "position tables and class tokens too)",
    ),
    "optim.layer_decay": Key(
        _OPTIM.layer_decay, "factor of the learning rate from each layer to the one below it; 1 = off"
    ),
    "optim.b1": Key(_OPTIM.b1, "decay of the first moment (adamw, adam, lion, the adam part of muon)"),
    "optim.b2": Key(
        _OPTIM.b2, "decay of the second moment (adamw, adam, the adam part of muon) or the momentum (lion)"
    ),
    "optim.eps": Key(_OPTIM.eps, "epsilon, added outside the root (adamw, adam, the adam part of muon)"),
    "optim.momentum": Key(_OPTIM.momentum, "momentum of sgd; 0 = none"),
    "optim.ema_decay": Key(
        0.0, "decay of the exponential moving average (EMA) of the weights, which evaluation then uses; 0 = no EMA"
    ),
    "optim.ema_ramp": Key(True, "use a smaller decay of the EMA at first: min(ema_decay, (1 + step) / (10 + step))"),
    "optim.clip_norm": Key(_OPTIM.clip_norm, "scale gradients down to this global L2 norm; 0 = off"),
    "optim.freeze": Key(
        _OPTIM.freeze,
        "patterns of parameters that are not trained, separated by '|', such as '*/embed*|*/block_[0-5]/*', or "
        "'!head/*' for all but these; they have no moments; '' = all are trained",
        added=True,
    ),
    "optim.head_first": Key(
        "0 steps",
        "train only the head for this long, epochs, steps or a share of the training, then all that is not frozen",
        added=True,
    ),
    "optim.muon_on": Key(
        _OPTIM.muon_on,
        "patterns of the matrices that muon updates, by paths such as 'encoder/block_0/mlp/dense_0/kernel'",
        added=True,
    ),
    "optim.muon_off": Key(
        _OPTIM.muon_off,
        "patterns of matrices that adam updates instead; adam also updates all that is not a matrix",
        added=True,
    ),
    "optim.muon_heads": Key(
        _OPTIM.muon_heads, "muon takes an attention kernel as one 'matrix' over all heads, or 'per_head'", added=True
    ),
    "optim.muon_beta": Key(_OPTIM.muon_beta, "decay of muon's momentum", added=True),
    "optim.muon_rms": Key(
        _OPTIM.muon_rms, "root mean square of muon's updates before the learning rate; adam's is about 0.2", added=True
    ),
    # Training.
    "train.duration": Key("10 epochs", "length of the training: epochs or steps"),
    "train.batch_size": Key(128, "images per step, over all devices"),
    "train.steps_per_call": Key(
        0,
        "steps per call of the device; saving, stopping and evaluation happen between calls; 0 = 10 on accelerators "
        "that keep the training split, else 1",
        changes_result=False,
    ),
    "train.last_batch": Key("keep", "the last, smaller batch of an epoch: 'keep' (every image counts once) or 'drop'"),
    "train.accumulate": Key(1, "gradient accumulation: number of parts that a batch is split into, to save memory"),
    "train.fsdp": Key(
        1, "devices that share one copy of the parameters and optimizer state; 1 = a copy on each device"
    ),
    "train.deterministic": Key(False, "use deterministic kernels on GPU, which are slower; other devices always do"),
    "train.implementations": Key(
        "fast",
        "how attention, max-pooling, gelu and noise are computed: 'fast' (the fastest on this device) or 'plain'",
    ),
    "train.label_smoothing": Key(0.0, "label smoothing: share of the target spread evenly over all classes"),
    "train.elastic": Key(
        (),
        "numbers of learned tokens to train one TokenLearner for, such as (4, 16): each step draws one; the last is "
        "model.learner_tokens; () = only that one",
        added=True,
    ),
    "train.seeds": Key(
        "auto",
        "runs of several seeds: 'together' in one program, 'in_turn', or 'auto' (together on an accelerator with room)",
        changes_result=False,
    ),
    "train.patience": Key(
        "", "early stopping: stop after this long, such as '5 epochs', without a better result; '' = never"
    ),
    "train.hooks": Key(
        (),
        "functions 'package.module:function', (state, metrics), called after each epoch; True or a text ends the run",
        added=True,
    ),
    "train.monitor": Key(
        "top1",
        "validation metric for the best checkpoint: 'top1', 'top5', 'loss', 'precision', 'recall', 'macro_f1' or "
        "'balanced_accuracy'",
    ),
    # Evaluation, saving, logging.
    "eval.batch_size": Key(0, "images per evaluation batch; 0 = the training batch size", changes_result=False),
    "checkpoint.every": Key("1 epochs", "interval between checkpoints: epochs or steps", changes_result=False),
    "log.every": Key("50 steps", "interval between lines of training metrics: epochs or steps", changes_result=False),
    "log.writers": Key(
        ("jsonl", "tensorboard"),
        "where metrics go, any of 'jsonl', 'tensorboard', 'wandb', 'mlflow'",
        changes_result=False,
    ),
}

# Former keys. A model's attributes are keys too: 'model.ATTRIBUTE'. REMOVED says what to write instead. RENAMED gives
# the new name: run folders with the old name can still be read, and config hashes keep it.
REMOVED: dict[str, str] = {}
RENAMED: dict[str, str] = {"train.ways": "train.implementations"}

# Keys that may change when a finished run is extended.
EXTENDABLE = ("train.duration", "train.patience", "train.hooks")
