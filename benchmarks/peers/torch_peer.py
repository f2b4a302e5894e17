"""PyTorch: eager, or with model and loss compiled by torch.compile."""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F

from .torch_models import make_model
from .workloads import Workload, images, labels


def image_tensor(workload: Workload, count: int, device: str = "cpu") -> torch.Tensor:
    """Images of the workload, (count, C, H, W) in channels-last memory."""
    return torch.from_numpy(images(workload, count)).to(device).permute(0, 3, 1, 2)


class TorchPeer:
    """A `benchmarks.peers.timing.Peer`.

    Args:
      name: name of the peer.
      mode: mode of torch.compile; '' = eager.
      amp: autocast to bfloat16.
    """

    def __init__(self, name: str, *, mode: str = "", amp: bool = False):
        self.name = name
        self._mode, self._amp = mode, amp
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, the default of JAX and TensorFlow

    def prepare(self, workload: Workload) -> None:
        w, device = workload, self._device
        self._model = make_model(w.model).to(device, memory_format=torch.channels_last)
        kind = torch.optim.Adam if w.optimizer == "adam" else torch.optim.AdamW
        self._optimizer = kind(
            self._model.parameters(), lr=w.learning_rate, eps=w.epsilon, weight_decay=w.weight_decay, fused=True
        )
        # A copy for inference: otherwise switching between train and eval mode would be timed too.
        still = copy.deepcopy(self._model).eval()

        def loss(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=self._amp):
                logits_BK = self._model(images_BCHW)
            return F.cross_entropy(logits_BK, labels_B, label_smoothing=w.label_smoothing)

        def logits(images_BCHW: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=self._amp):
                return still(images_BCHW)

        self._loss, self._logits = loss, logits
        if self._mode:
            # Not dynamic: compile a program for each batch size.
            self._loss, self._logits = (torch.compile(f, mode=self._mode, dynamic=False) for f in (loss, logits))
        self._images = cache(lambda count: image_tensor(w, count, device))
        self._batch = self._images(w.batch), torch.from_numpy(labels(w, w.batch)).long().to(device)

    def parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    def train_step(self) -> float:
        if self._mode:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(*self._batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._wait()
        return loss.item()

    @torch.inference_mode()
    def infer(self, batch: int) -> torch.Tensor:
        logits_BK = self._logits(self._images(batch))
        self._wait()
        return logits_BK

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def device(self) -> str:
        return torch.cuda.get_device_name() if self._device == "cuda" else "cpu"

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}
