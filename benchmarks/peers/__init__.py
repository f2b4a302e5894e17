"""The models of the speed comparison written for other frameworks, and workers that time them.

`keras_models` (on TensorFlow or JAX) and `torch_models` write nine of jaxvit's models again, with the same parameters
and the same arithmetic; `check` compares them number by number. `worker` is the process that runs one of them.
"""
