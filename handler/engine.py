"""Networks in ONNX Runtime.

On one image it takes a third of the time of eager torch, and a worker without torch takes a third
of the memory and starts in a second (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from handler.preprocessing import Floats, Pixels

GPU = "CUDAExecutionProvider"
CURE = (
    "Install onnxruntime-gpu in place of onnxruntime, with the CUDA and cuDNN that it names, or "
    "set deviceType to cpu in model-config.yaml."
)

# N inputs in, N outputs out.
Network = Callable[[Pixels | Floats], Floats]


class Engine:
    """An ONNX network; call it with an array of N inputs."""

    def __init__(self, model: bytes, threads: int, gpu: int | None, batch_size: int = 1) -> None:
        """Load a network on the CPU or on a GPU; raise RuntimeError if the GPU can't be used.

        On a GPU, batches are padded to a multiple of `batch_size`: CUDA plans each new batch size,
        which takes far longer than the padding.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads take the cores from other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Errors only: Java parses every line that a worker logs.
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, _providers(gpu))
        # With a missing or wrong driver, ONNX Runtime silently falls back to the CPU.
        if gpu is not None and GPU not in self._session.get_providers():
            raise RuntimeError(f"deviceType is gpu, but ONNX Runtime can't use GPU {gpu}. {CURE}")
        [inputs] = self._session.get_inputs()
        self._name = inputs.name
        self._multiple = 1 if gpu is None else batch_size

    def __call__(self, inputs: Pixels | Floats) -> Floats:
        count = len(inputs)
        if missing := -count % self._multiple:
            inputs = np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)])
        outputs: Floats = self._session.run(None, {self._name: inputs})[0]
        return outputs[:count]


def _providers(gpu: int | None) -> list[Any]:
    if gpu is None:
        return ["CPUExecutionProvider"]
    if GPU not in onnxruntime.get_available_providers():
        raise RuntimeError(
            f"deviceType is gpu, but this build of ONNX Runtime supports none. {CURE}"
        )
    # Its warnings are about providers that are not used here.
    onnxruntime.set_default_logger_severity(3)
    # CUDA and cuDNN may be in Python packages, where the loader does not look.
    onnxruntime.preload_dlls()
    # Full float32, as for the known answers.
    return [(GPU, {"device_id": gpu, "use_tf32": 0}), "CPUExecutionProvider"]
