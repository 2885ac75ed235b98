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
NVRTC, BUILTINS = "libnvrtc.so.13", "libnvrtc-builtins.so.13.*"
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


def missing_libraries(directory: Path) -> str:
    """Returns the name of a library of NVRTC that a directory lacks, or an empty string."""
    return next((name for name in (NVRTC, BUILTINS) if not any(directory.glob(name))), "")


def load_nvrtc(directory: Path | None) -> ctypes.CDLL:
    """Loads NVRTC from a directory; None: from the directories of the loader."""
    if directory is None:
        return ctypes.CDLL(NVRTC)
    for path in directory.glob(BUILTINS):  # libnvrtc does not search its own directory for them
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(directory / NVRTC))


def compile_source(
    nvrtc: ctypes.CDLL, architecture: str, source: Path, macros: dict[str, int]
) -> tuple[ctypes.Array, str]:
    """Returns machine code of a source and the log. Raises RuntimeError if NVRTC fails."""
    texts = ctypes.c_char_p * 1
    header = source.parent / "common.cuh"
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def call(function: str, *arguments) -> None:
        if code := getattr(nvrtc, function)(*arguments):
            raise RuntimeError(f"{source.name}: {function} returned {code}")

    call(
        "nvrtcCreateProgram",
        ctypes.byref(program),
        source.read_bytes(),
        source.name.encode(),
        1,
        texts(header.read_bytes()),
        texts(header.name.encode()),
    )
    try:
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v"]
        options += [f"-D{name}={value}" for name, value in macros.items()]
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = nvrtc.nvrtcCompileProgram(program, len(options), values)
        call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        call("nvrtcGetProgramLog", program, log)
        if code:
            raise RuntimeError(f"{source.name}: nvrtcCompileProgram returned {code}: {log.value.decode()}")
        call("nvrtcGetCUBINSize", program, ctypes.byref(size))
        machine_code = ctypes.create_string_buffer(size.value)
        call("nvrtcGetCUBIN", program, machine_code)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return machine_code, log.value.decode()


def check(directory: Path, architecture: str, file: str, macros: dict[str, int]) -> tuple[bool, str]:
    """Returns whether the file compiles without spills, and lines about its kernels."""
    source = KERNELS / f"{file}.cu"
    where = f"{architecture:<7} {file}.cu {' '.join(f'{name}={value}' for name, value in macros.items())}"
    try:
        _, log = compile_source(load_nvrtc(directory), architecture, source, macros)
    except (OSError, RuntimeError) as error:
        return False, f"FAILED  {where}:\n{error}"
    if "warning" in log:
        return False, f"FAILED  {where}:\n{log}"
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = re.findall(r"Used (\d+) registers[^\n]*", log)
    shared = [int(m[1]) if (m := re.search(r"(\d+) bytes smem", line)) else 0 for line in re.findall(r"Used .*", log)]
    expected = re.findall(r"^KERNEL\((\w+)\)", source.read_text(), re.MULTILINE)
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
    directory = Path(sys.argv[1])
    if missing := missing_libraries(directory):
        sys.exit(f"compile_with_nvrtc: {directory} contains no {missing}: name the directory of NVRTC 13.")
    tasks = [(architecture, *shape) for architecture in ARCHITECTURES for shape in SHAPES]
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(check, [directory] * len(tasks), *zip(*tasks)))
    for _, text in results:
        print(text)
    sys.exit(0 if all(good for good, _ in results) else 1)


if __name__ == "__main__":
    main()
