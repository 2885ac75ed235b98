"""Compiles the kernels with NVRTC for the shapes of the configurations, without a GPU.

    compile_with_nvrtc.py DIRECTORY     the directory with libnvrtc.so.13

Prints the registers and the shared memory of each kernel. Fails if NVRTC reports an error or a
warning, or if a kernel spills registers or uses local memory.
"""

import ctypes
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent
# A100; H100 and H200, with and without the features of this GPU only; B200.
ARCHITECTURES = ("sm_80", "sm_90", "sm_90a", "sm_100")
VOCAB_SIZES = (50264, 50304, 131072)  # micro, mini and small; GPT-2 124M; the largest
WIDTHS = (384, 640, 768, 1024, 1600, 3072)  # micro; mini; small and GPT-2; larger GPT-2; the largest
SENSES = ((16, 512), (16, 1024), (1, 512), (4, 512), (64, 512), (64, 2048))  # with the longest sequence
# As in crates/torch-ext/src/cuda_kernels/kernel.rs.
SHAPES = [
    *(("cross_entropy", {"VOCAB_SIZE": v, "THREADS": 512}) for v in VOCAB_SIZES),
    *(("layer_norm", {"WIDTH": width, "WARPS": 4}) for width in WIDTHS),
    ("gelu", {"THREADS": 128}),
    *(("sense_weights", {"NUM_SENSES": l, "MAX_LENGTH": t, "WARPS": min(l, 8)}) for l, t in SENSES),
]


def compile_file(directory: str, architecture: str, file: str, macros: dict[str, int]) -> tuple[bool, str]:
    """Returns whether NVRTC compiled the file, and its log."""
    # libnvrtc does not find this library by itself.
    ctypes.CDLL(os.path.join(directory, "libnvrtc-builtins.so.13.0"), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(os.path.join(directory, "libnvrtc.so.13"))
    source = (KERNELS / f"{file}.cu").read_bytes()
    header = (KERNELS / "common.cuh").read_bytes()
    texts = ctypes.c_char_p * 1
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source, f"{file}.cu".encode(), 1, texts(header), texts(b"common.cuh")
    )
    if code:
        return False, f"nvrtcCreateProgram returned {code}"
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v"]
    options += [f"-D{name}={value}" for name, value in macros.items()]
    values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    code = nvrtc.nvrtcCompileProgram(program, len(options), values)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code == 0, log.value.decode()


def check(directory: str, architecture: str, file: str, macros: dict[str, int]) -> tuple[bool, str]:
    """Returns whether the file compiles without spills, and lines about its kernels."""
    compiled, log = compile_file(directory, architecture, file, macros)
    where = f"{architecture:<7} {file}.cu {' '.join(f'{name}={value}' for name, value in macros.items())}"
    if not compiled or "warning" in log:
        return False, f"FAILED  {where}:\n{log}"
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = re.findall(r"Used (\d+) registers[^\n]*", log)
    shared = [int(m[1]) if (m := re.search(r"(\d+) bytes smem", line)) else 0 for line in re.findall(r"Used .*", log)]
    expected = re.findall(r"^KERNEL\((\w+)\)", (KERNELS / f"{file}.cu").read_text(), re.MULTILINE)
    if sorted(kernels) != sorted(expected) or not len(kernels) == len(frames) == len(used):
        return False, f"FAILED  {where}: the log does not report every kernel:\n{log}"
    good, lines = True, []
    for kernel, (stack, stores, loads), registers, memory in zip(kernels, frames, used, shared):
        bad = any(int(n) for n in (stack, stores, loads))
        good = good and not bad
        text = f"{registers:>3} registers, {memory:>5} bytes of shared memory"
        if bad:
            text += f", {stack} bytes of local memory, {stores} and {loads} bytes of spills"
        lines.append(f"{'FAILED' if bad else 'ok    '}  {where}: {kernel}: {text}")
    return good, "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tasks = [(architecture, *shape) for architecture in ARCHITECTURES for shape in SHAPES]
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(check, [sys.argv[1]] * len(tasks), *zip(*tasks)))
    for _, text in results:
        print(text)
    sys.exit(0 if all(good for good, _ in results) else 1)


if __name__ == "__main__":
    main()
