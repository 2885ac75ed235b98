"""Lets PyPI's CUDA build of torch be imported without the 1.8 GB of CUDA libraries it links to.

    python without_cuda.py FOLDER      the folder that holds `torch` and `nvidia`

A CPU run calls nothing in cuDNN, cuBLAS, NCCL and the rest, but the loader wants the files and
their symbols. Where a library is absent, a small one of its name comes in, whose functions all
answer "error 1". torch's own libraries stay as published.
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
    folder = Path(sys.argv[1])
    torch_libraries = sorted((folder / "torch/lib").glob("*.so"))
    there = {path.name for path in folder.glob("nvidia/*/lib/*")}
    absent, functions, versions = set(), set(), {}
    for library in torch_libraries:
        headers = output("objdump", "-p", library)
        needed = re.findall(r"NEEDED\s+(\S+)", headers)
        absent |= {name for name in needed if LIBRARY.fullmatch(name) and name not in there}
        versions |= dict(re.findall(r"required from (\S+):\n\s+\S+ \S+ \S+ (\S+)", headers))
        undefined = output("nm", "-D", "--undefined-only", library).splitlines()
        names = [line.split()[-1].split("@")[0] for line in undefined]
        functions |= {name for name in names if SYMBOL.fullmatch(name)}
    labels = "\n".join(f".globl {name}\n.type {name}, @function\n{name}:" for name in sorted(functions))
    source = f".text\n{labels}\nmov $1, %eax\nret\n"
    script = folder / "symbol-version"
    for name in sorted(absent):
        # torch's libraries look for what they need beside themselves too.
        command = ["c++", "-shared", "-x", "assembler", "-", f"-Wl,-soname,{name},-z,noexecstack"]
        if name in versions:
            script.write_text(f"{versions[name]} {{ global: *; }};")
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run([*command, "-o", folder / "torch/lib" / name], input=source, check=True, text=True)
    script.unlink()


if __name__ == "__main__":
    main()
