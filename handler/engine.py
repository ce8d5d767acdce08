"""What runs the networks: ONNX Runtime.

On one image it takes a third of eager torch's time, and the worker, which so needs no torch, a
third of the memory; it starts in a second (benchmarks/README.md has the figures).
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

# From N inputs to N outputs.
Network = Callable[[Pixels | Floats], Floats]


class Engine:
    """A network in ONNX, ready to be called with an array of inputs."""

    def __init__(self, model: bytes, threads: int, gpu: int | None, batch_size: int = 1) -> None:
        """Load a network for the CPU, or for a GPU; RuntimeError if there is no way to use that.

        A GPU works on multiples of `batch_size` inputs: it would plan anew for each other number,
        which takes it far longer than the inputs that fill up a batch.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Each line of a worker is taken apart by Java: none but of errors.
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, _providers(gpu))
        # Without a driver, or with another one, it would do with the CPU and not say so.
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
        raise RuntimeError(f"deviceType is gpu, but this ONNX Runtime knows none. {CURE}")
    # It warns of what is not in use.
    onnxruntime.set_default_logger_severity(3)
    # CUDA and cuDNN may lie in packages of Python's, where the loader does not look.
    onnxruntime.preload_dlls()
    # With float32 as it is, as the known answers are compared with.
    return [(GPU, {"device_id": gpu, "use_tf32": 0}), "CPUExecutionProvider"]
