"""Compiles a CUDA source at run time and launches its kernels on tensors: with NVRTC on a GPU, and
with the emulator of crates/torch-ext/cuda on a CPU."""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "crates/torch-ext/cuda/checks"))
from compile_with_nvrtc import compile_source, load_nvrtc, missing_libraries


def compile_kernels(source: Path, device: str, **macros: int) -> "Module":
    """Returns the kernels of a source for a device. A macro is defined for the compiler."""
    return CudaModule(source, macros) if device == "cuda" else EmulatedModule(source, macros)


class Module:
    """The kernels of one source file."""

    def __init__(self):
        self.functions = {}

    def launch(self, name: str, grid: tuple, threads: int, *arguments) -> None:
        """Launches a kernel. Tensors are passed as pointers, None as a null pointer, and numbers as
        values of ctypes."""
        if name not in self.functions:
            self.functions[name] = self.find(name)
        values = []
        for x in arguments:
            if x is None or isinstance(x, torch.Tensor):
                x = ctypes.c_void_p(None if x is None else x.data_ptr())
            values.append(x)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.run(name, (*grid, 1, 1)[:3], threads, pointers)

    def find(self, name: str) -> ctypes.c_void_p:
        raise NotImplementedError

    def run(self, name: str, grid: tuple, threads: int, pointers: ctypes.Array) -> None:
        raise NotImplementedError


class CudaModule(Module):
    """Kernels on the current GPU and PyTorch's current stream."""

    def __init__(self, source: Path, macros: dict):
        super().__init__()
        torch.zeros(1, device="cuda")  # creates the CUDA context
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.module = ctypes.c_void_p()
        code = _compile_for_this_gpu(source, macros)
        self.check(self.driver.cuModuleLoadData(ctypes.byref(self.module), code), source.name)

    def check(self, code: int, what: str) -> None:
        if code:
            name = ctypes.c_char_p()
            self.driver.cuGetErrorName(code, ctypes.byref(name))
            raise RuntimeError(f"{what}: {name.value.decode() if name.value else code}")

    def find(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        code = self.driver.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode())
        self.check(code, name)
        return function

    def run(self, name: str, grid: tuple, threads: int, pointers: ctypes.Array) -> None:
        function = self.functions[name]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = self.driver.cuLaunchKernel(function, *grid, threads, 1, 1, 0, stream, pointers, None)
        self.check(code, name)


class EmulatedModule(Module):
    """Kernels that a C++ compiler built for this CPU. Not for measurements."""

    def __init__(self, source: Path, macros: dict):
        super().__init__()
        entry = source.parent / "emulator/entry.cpp"
        with tempfile.TemporaryDirectory() as directory:
            library = Path(directory) / "kernels.so"
            command = ["c++", "-O1", "-std=c++17", "-shared", "-fPIC", "-w"]
            command += [f"-D{macro}={value}" for macro, value in macros.items()]
            command += [f'-DKERNEL_SOURCE="{source.resolve()}"', str(entry), "-o", str(library)]
            built = subprocess.run(command, check=False, capture_output=True, text=True)
            if built.returncode != 0:
                raise RuntimeError(f"{source.name}: {built.stderr[-500:]}")
            self.library = ctypes.CDLL(str(library))
        self.library.emulated_function.restype = ctypes.c_void_p
        self.library.emulated_error.restype = ctypes.c_char_p

    def find(self, name: str) -> ctypes.c_void_p:
        address = self.library.emulated_function(name.encode())
        if not address:
            raise RuntimeError(f"the source has no kernel {name}")
        return ctypes.c_void_p(address)

    def run(self, name: str, grid: tuple, threads: int, pointers: ctypes.Array) -> None:
        function = self.functions[name]
        if self.library.emulated_launch(function, *grid, threads, 1, 1, 0, None, pointers, None):
            text = self.library.emulated_error() or b"the launch failed"
            raise RuntimeError(f"{name}: {text.decode()}")


def _compile_for_this_gpu(source: Path, macros: dict) -> ctypes.Array:
    """Returns machine code. NVRTC is loaded from the NVIDIA wheels next to torch, or else by the
    loader."""
    directory = Path(torch.__file__).parent.parent / "nvidia/cu13/lib"
    nvrtc = load_nvrtc(None if missing_libraries(directory) else directory)
    major, minor = torch.cuda.get_device_capability()
    code, _ = compile_source(nvrtc, f"sm_{major}{minor}", source, macros)
    return code
