"""What has to be set for a process before, and right after, torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def prepare() -> None:
    """One thread a process, and matrix products that do not depend on operand alignment.

    Call before numpy or torch is imported. With `MKL_CBWR` a run's products are the same bits wherever its slice
    lies in the group's tensor, which is what makes a run alone equal a run in company.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    os.environ.setdefault("MKL_CBWR", instruction_set())
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks. It hands activations of a megabyte back to the kernel after every update otherwise,
    and the page faults cost 20 to 50 % of the time. Does nothing where the C library is another one."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 << 20)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take float32 numbers below 1e-38 for 0 while inside.

    Adam's moments of a ReLU unit that is off decay into them in some 800 updates, and the arithmetic on them is slow
    enough to triple the time of a DQN update.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def cpu_flags() -> set[str]:
    """Instruction sets of this CPU as Linux names them; empty where that file is missing."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()


def instruction_set() -> str:
    """The widest of those that matter here which this CPU has, in MKL's words."""
    flags = cpu_flags()
    return "AVX512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "COMPATIBLE"


def configure(device: str = "auto") -> dict[str, Any]:
    """`configure_torch` where torch has been imported. An algorithm that computes in NumPy alone spares a worker the
    seconds which that takes, and runs on the CPU whatever the device."""
    if "torch" in sys.modules:
        return configure_torch(device)
    return {"device": "cpu", "precision": "that of NumPy's arrays", "threads": 1, "isa": instruction_set()}


def configure_torch(device: str = "auto") -> dict[str, Any]:
    """Set threads and precision; choose the device. Returns what the manifest records.

    `device` is `auto`, `cpu` or `cuda`. Raises `ValueError` when CUDA is asked for and there is none.
    Products stay in float32: on CPUs with AMX, and on GPUs, lower settings silently round to bfloat16 or TF32.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for and torch sees no CUDA device; use --device cpu or auto")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    return {
        "device": device if device == "cpu" else f"{device} ({torch.cuda.get_device_name()})",
        "precision": "float32, matmul highest",
        "threads": 1,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
    }
