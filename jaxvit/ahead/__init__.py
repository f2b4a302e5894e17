"""`jaxvit compile`: compiles the training step for accelerators that are not here, and reads what XLA made of it.

Nothing runs on an accelerator. XLA compiles for TPUs with libtpu, and for NVIDIA's GPUs with the wheels of CUDA, on any
machine. `chips.py` has the chips and their published numbers, `topology.py` the devices to compile for, `hlo.py` reads
the text of a compiled program, `analysis.py` counts what it does, `compiling.py` puts a run's step through all of them,
and `page.py` prints the findings.
"""
