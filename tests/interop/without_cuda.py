"""Makes the CUDA build of torch from PyPI importable without the 1.8 GB of CUDA libraries it links.

    python without_cuda.py DIRECTORY      the directory that holds `torch` and `nvidia`

On a CPU, torch calls no function of cuDNN, cuBLAS, NCCL and the others, but the loader needs the
files and their symbols. For each missing library, this script builds a small library of the same
name whose functions all return error 1. The libraries of torch itself are not changed.
"""

import re
import subprocess
import sys
from pathlib import Path

SYMBOL = re.compile(r"(cublas|cudnn|cuFile|cufft|curand|cusolver|cusparse|nccl|nvrtc|nvshmem)\w+")
LIBRARY = re.compile(r"lib(cublas|cudnn|cufile|cufft|curand|cusolver|cusparse|nccl|nvrtc|nvshmem)\w*\.so\.\d+")


def output(*command) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    directory = Path(sys.argv[1])
    torch_libraries = sorted((directory / "torch/lib").glob("*.so"))
    present = {path.name for path in directory.glob("nvidia/*/lib/*")}
    missing, functions, versions = set(), set(), {}
    for library in torch_libraries:
        headers = output("objdump", "-p", library)
        needed = re.findall(r"NEEDED\s+(\S+)", headers)
        missing |= {name for name in needed if LIBRARY.fullmatch(name) and name not in present}
        versions |= dict(re.findall(r"required from (\S+):\n\s+\S+ \S+ \S+ (\S+)", headers))
        undefined = output("nm", "-D", "--undefined-only", library).splitlines()
        names = [line.split()[-1].split("@")[0] for line in undefined]
        functions |= {name for name in names if SYMBOL.fullmatch(name)}
    labels = "\n".join(f".globl {name}\n.type {name}, @function\n{name}:" for name in sorted(functions))
    source = f".text\n{labels}\nmov $1, %eax\nret\n"
    script = directory / "symbol-version"
    for name in sorted(missing):
        # The libraries of torch also search for their dependencies in their own directory.
        command = ["c++", "-shared", "-x", "assembler", "-", f"-Wl,-soname,{name},-z,noexecstack"]
        if name in versions:
            script.write_text(f"{versions[name]} {{ global: *; }};")
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run([*command, "-o", directory / "torch/lib" / name], input=source, check=True, text=True)
    script.unlink()


if __name__ == "__main__":
    main()
