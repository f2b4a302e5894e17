"""The chips that a step can be compiled for, with their published numbers.

Every number is the vendor's. Rates of NVIDIA's are those of dense matrices; its data sheets also have twice as many
for sparse ones. Bandwidths of interconnects count one direction: half of the published sum of both.

| chip | source |
|---|---|
| v5e | https://cloud.google.com/tpu/docs/v5e |
| v5p | https://cloud.google.com/tpu/docs/v5p |
| v6e | https://cloud.google.com/tpu/docs/v6e |
| h100 | https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (SXM5) |
| h200 | https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446 (SXM) |

`memory` of a TPU is what its compiler lets a program have; of a GPU, that of the card.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: as in `--topology`.
      title: the vendor's name.
      platform: 'tpu' or 'cuda'.
      memory: bytes that a program can use.
      bandwidth: bytes per second of its memory.
      flops: {'bfloat16': …, 'float32': …} operations per second of matrix products; a multiply-add is two. 'float32'
        is at JAX's default precision: TPUs then multiply in bfloat16 and GPUs in TensorFloat-32.
      link: bytes per second that a chip sends to others of its topology.
      chips_per_host: chips of one host.
      dimensions: number of axes of a topology's torus; 0 = any chip reaches any other at the same speed.
    """

    name: str
    title: str
    platform: str
    memory: int
    bandwidth: float
    flops: dict[str, float]
    link: float
    chips_per_host: int
    dimensions: int


_GIB = 2**30

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5e", "tpu", int(15.75 * _GIB), 819e9, {"bfloat16": 197e12, "float32": 197e12}, 200e9, 4, 2),
        Chip("v5p", "TPU v5p", "tpu", int(95.74 * _GIB), 2765e9, {"bfloat16": 459e12, "float32": 459e12}, 600e9, 4, 3),
        Chip("v6e", "TPU v6e", "tpu", int(31.25 * _GIB), 1638e9, {"bfloat16": 918e12, "float32": 918e12}, 400e9, 4, 2),
        Chip(
            *("h100", "NVIDIA H100 80GB HBM3", "cuda", 84_942_979_072, 3.35e12),
            *({"bfloat16": 989.4e12, "float32": 494.7e12}, 450e9, 8, 0),
        ),
        Chip(
            *("h200", "NVIDIA H200 141GB HBM3e", "cuda", 151_397_597_184, 4.8e12),
            *({"bfloat16": 989.4e12, "float32": 494.7e12}, 450e9, 8, 0),
        ),
    )
}

# Hopper's SXM cards as XLA describes them (`GpuTargetConfigProto`, the text that XLA writes with
# --xla_gpu_dump_autotune… on such a card): what its compiler asks of a device.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
  shared_memory_per_block_optin: 232448 cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" name: "{name}"
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
"""


def gpu_description(chip: Chip) -> str:
    """The description of a GPU that XLA compiles for, a `GpuTargetConfigProto` as text."""
    return _HOPPER.format(bandwidth=int(chip.bandwidth), memory=chip.memory, name=chip.title)
