"""Compiles a CUDA source with NVRTC and launches its kernels on PyTorch's stream. Calls NVRTC and the
CUDA driver through ctypes."""

import ctypes
from pathlib import Path

import torch


def _load(name: str) -> ctypes.CDLL:
    """Loads a library of the NVIDIA wheels next to torch, or one that the loader finds."""
    path = Path(torch.__file__).parent.parent / "nvidia/cu13/lib" / name
    return ctypes.CDLL(str(path) if path.is_file() else name)


class Module:
    """The kernels of one source file, compiled for the current GPU with macros."""

    def __init__(self, source: Path, **macros: int):
        torch.zeros(1, device="cuda")  # creates the CUDA context
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.module = ctypes.c_void_p()
        code = _compile(source, macros)
        self._check(self.driver.cuModuleLoadData(ctypes.byref(self.module), code), source.name)
        self.functions = {}

    def _check(self, code: int, what: str) -> None:
        if code:
            name = ctypes.c_char_p()
            self.driver.cuGetErrorName(code, ctypes.byref(name))
            raise RuntimeError(f"{what}: {name.value.decode() if name.value else code}")

    def launch(self, name: str, grid: tuple, threads: int, *arguments) -> None:
        """Launches a kernel. Tensors are passed as pointers, None as a null pointer, and numbers as
        values of ctypes."""
        if name not in self.functions:
            function = ctypes.c_void_p()
            code = self.driver.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode())
            self._check(code, name)
            self.functions[name] = function
        values = []
        for x in arguments:
            if x is None or isinstance(x, torch.Tensor):
                x = ctypes.c_void_p(None if x is None else x.data_ptr())
            values.append(x)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        x, y, z = (*grid, 1, 1)[:3]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        function = self.functions[name]
        code = self.driver.cuLaunchKernel(function, x, y, z, threads, 1, 1, 0, stream, pointers, None)
        self._check(code, name)


def _compile(source: Path, macros: dict) -> ctypes.Array:
    """Returns machine code for the current GPU."""
    _load("libnvrtc-builtins.so.13.0")  # NVRTC loads it by name and does not search its own directory
    nvrtc = _load("libnvrtc.so.13")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text, name = source.read_bytes(), source.name.encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    major, minor = torch.cuda.get_device_capability()
    options = [
        f"--gpu-architecture=sm_{major}{minor}{'a' if major == 9 else ''}",
        "--std=c++17",
        f"--include-path={source.parent}",
        *(f"-D{macro}={value}" for macro, value in macros.items()),
    ]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if nvrtc.nvrtcCompileProgram(program, len(options), array):
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{source.name}: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    return code
