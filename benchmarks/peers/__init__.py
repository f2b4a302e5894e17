"""Other frameworks' versions of jaxvit's models, and worker processes that time them.

`keras_models` (for TensorFlow or JAX) and `torch_models` implement nine of jaxvit's models with the same parameters and
arithmetic; `check` compares their logits. `worker` is the process that runs one of them.
"""
