"""Keras 3, with the custom training loop from its guides for each backend, without metrics and callbacks."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import keras
import numpy as np

from .keras_models import make_model
from .workloads import Workload, images, labels


def _optimizer(workload: Workload) -> keras.optimizers.Optimizer:
    w = workload
    if w.optimizer == "adam":
        return keras.optimizers.Adam(w.learning_rate, epsilon=w.epsilon)
    return keras.optimizers.AdamW(w.learning_rate, weight_decay=w.weight_decay, epsilon=w.epsilon)


class KerasPeer:
    """A `benchmarks.peers.timing.Peer`. The backend is the one that Keras was imported with.

    Args:
      name: name of the peer.
      xla: compile TensorFlow's graphs with XLA. JAX always does.
      amp: Keras's mixed precision in bfloat16.
    """

    def __init__(self, name: str, *, xla: bool = False, amp: bool = False):
        self.name = name
        self._xla = xla
        keras.config.set_dtype_policy("mixed_bfloat16" if amp else "float32")

    def prepare(self, workload: Workload) -> None:
        w = workload
        self._model = make_model(w.model)
        self._loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=w.label_smoothing)
        self._optimizer = _optimizer(w)
        self._optimizer.build(self._model.trainable_variables)
        self._images = cache(lambda count: keras.ops.convert_to_tensor(images(w, count)))
        targets = np.eye(w.classes, dtype=np.float32)[labels(w, w.batch)]
        self._batch = self._images(w.batch), keras.ops.convert_to_tensor(targets)
        self._prepare_tensorflow() if keras.backend.backend() == "tensorflow" else self._prepare_jax()

    def _prepare_tensorflow(self) -> None:
        import tensorflow as tf

        model, loss_of, optimizer = self._model, self._loss, self._optimizer

        @tf.function(jit_compile=self._xla)
        def step(images_BHWC: tf.Tensor, targets_BK: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = loss_of(targets_BK, model(images_BHWC, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        @tf.function(jit_compile=self._xla)
        def logits(images_BHWC: tf.Tensor) -> tf.Tensor:
            return model(images_BHWC, training=False)

        self._step = lambda: step(*self._batch).numpy()
        self._infer = lambda batch: logits(self._images(batch)).numpy()

    def _prepare_jax(self) -> None:
        import jax

        model, loss_of, optimizer = self._model, self._loss, self._optimizer

        def loss_and_rest(trained: Any, rest: Any, images_BHWC: jax.Array, targets_BK: jax.Array) -> Any:
            logits_BK, rest = model.stateless_call(trained, rest, images_BHWC, training=True)
            return loss_of(targets_BK, logits_BK), rest

        def step(state: Any, images_BHWC: jax.Array, targets_BK: jax.Array) -> Any:
            trained, rest, moments = state
            gradient = jax.value_and_grad(loss_and_rest, has_aux=True)
            (loss, rest), gradients = gradient(trained, rest, images_BHWC, targets_BK)
            trained, moments = optimizer.stateless_apply(moments, gradients, trained)
            return (trained, rest, moments), loss

        def logits(trained: Any, rest: Any, images_BHWC: jax.Array) -> jax.Array:
            return model.stateless_call(trained, rest, images_BHWC, training=False)[0]

        step, logits = jax.jit(step, donate_argnums=0), jax.jit(logits)
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        # Copies: the first step donates its arguments, and the model still needs its arrays.
        self._state = tuple([jax.numpy.copy(v.value) for v in part] for part in variables)

        def train() -> jax.Array:
            self._state, loss = step(self._state, *self._batch)
            jax.block_until_ready((self._state, loss))
            return loss

        self._step = train
        self._infer = lambda batch: jax.block_until_ready(logits(*self._state[:2], self._images(batch)))

    def parameters(self) -> int:
        return sum(int(np.prod(v.shape)) for v in self._model.trainable_variables)

    def train_step(self) -> Any:
        return self._step()

    def infer(self, batch: int) -> Any:
        return self._infer(batch)

    def device(self) -> str:
        if keras.backend.backend() == "jax":
            import jax

            return jax.devices()[0].device_kind
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_device_details(found[0]).get("device_name", "gpu") if found else "cpu"

    def versions(self) -> dict[str, str]:
        if keras.backend.backend() == "jax":
            return {"keras": keras.__version__, "jax": version("jax")}
        import tensorflow as tf

        return {"keras": keras.__version__, "tensorflow": tf.__version__}
