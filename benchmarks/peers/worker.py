"""A worker process: runs one model of one framework, controlled through stdin.

    python -m benchmarks.peers.worker --peer keras-tensorflow --model tutorial_cct

`benchmarks.peers.timing` describes the commands. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time

from .timing import MISSING, MissingPackageError, Peer, serve
from .workloads import WORKLOADS

# name -> required packages
PEERS = {
    "jaxvit": ("jax",),
    "keras-tensorflow": ("keras", "tensorflow"),
    "keras-tensorflow-xla": ("keras", "tensorflow"),
    "keras-jax": ("keras", "jax"),
    "torch-eager": ("torch",),
    "torch-compile": ("torch",),
}


def make_peer(name: str, *, amp: bool, compile_mode: str, implementations: str) -> Peer:
    """Imports a framework and creates its peer. `implementations`: implementations of jaxvit's operations.

    Raises:
      MissingPackageError: the framework or its compiler is not installed.
    """
    for package in PEERS[name]:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the peers share a GPU
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if "jax" not in PEERS[name]:
        os.environ["JAX_PLATFORMS"] = "cpu"  # jaxvit only counts parameters here
    if "jax" in PEERS[name]:
        from jaxvit.devices.runtime import choose_cpu_libraries

        choose_cpu_libraries()  # as in the jaxvit command; also applies to Keras on JAX
    if name == "jaxvit":
        from .jaxvit_peer import JaxvitPeer

        return JaxvitPeer(amp=amp, implementations=implementations)
    if name.startswith("keras"):
        os.environ["KERAS_BACKEND"] = "jax" if name == "keras-jax" else "tensorflow"
        from .keras_peer import KerasPeer

        return KerasPeer(name, xla=name.endswith("xla"), amp=amp)
    compiler = os.environ.get("CXX", "g++")
    if name == "torch-compile" and shutil.which(compiler) is None:
        raise MissingPackageError(compiler)
    from .torch_peer import TorchPeer

    return TorchPeer(name, mode=compile_mode if name == "torch-compile" else "", amp=amp)


def check_parameters(peer: Peer, model: str) -> int:
    """The number of parameters of the peer's model.

    Raises:
      AssertionError: jaxvit's model has a different number.
    """
    from jaxvit.models import create_model
    from jaxvit.models.count import abstract_variables, count_params

    wanted = count_params(abstract_variables(create_model(model), WORKLOADS[model].input))
    found = peer.parameters()
    if found != wanted:
        raise AssertionError(f"{model} has {found:,} parameters in {peer.name} and {wanted:,} in jaxvit")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=tuple(PEERS))
    parser.add_argument("--model", required=True, choices=tuple(WORKLOADS))
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16, keep weights in float32")
    parser.add_argument("--compile_mode", default="default", help="mode of torch.compile; 'reduce-overhead' suits GPUs")
    parser.add_argument(
        "--implementations",
        default="fast",
        choices=("fast", "plain"),
        help="implementations of jaxvit's operations, see jaxvit.ops.implementations",
    )
    options = parser.parse_args()

    # stdout is reserved for answers: prints of the frameworks go to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    began = time.perf_counter()
    try:
        peer = make_peer(
            options.peer, amp=options.amp, compile_mode=options.compile_mode, implementations=options.implementations
        )
    except MissingPackageError as missing:
        print(f"{MISSING}{missing}", file=answers, flush=True)
        return 0
    peer.prepare(WORKLOADS[options.model])
    parameters = check_parameters(peer, options.model)
    prepared = time.perf_counter()
    peer.train_step()
    start = {
        "peer": options.peer,
        "model": options.model,
        "parameters": parameters,
        "device": peer.device(),
        "versions": peer.versions(),
        "prepare_s": round(prepared - began, 3),
        "first_step_s": round(time.perf_counter() - prepared, 3),
    }
    print(json.dumps(start), file=answers, flush=True)
    serve(peer, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
