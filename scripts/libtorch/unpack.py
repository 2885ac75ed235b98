"""Unpack libtorch from PyPI wheels: unpack.py cpu|cu13 FOLDER WHEEL...

FOLDER/torch/{lib,include} and FOLDER/nvidia/ keep the wheels' own layout, because
libtorch_cpu.so finds its dependencies by paths relative to itself. FOLDER/lib and
FOLDER/include are what LIBTORCH names at build time: links to the CPU libraries, and
a libtorch.so that stands for libtorch_cpu.so alone (the wheel's own would make every
binary load CUDA at start). CUDA is loaded at run time where it is there.
"""
import os
import sys
import zipfile

variant, folder, wheels = sys.argv[1], sys.argv[2], sys.argv[3:]
CPU_LIBRARIES = ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")
CPU_CUDA_LIBRARIES = ("libcudart.so.13", "libcupti.so.13")  # libtorch_cpu.so needs these two


def wanted(name):
    if name.endswith("/") or ".dist-info/" in name:
        return ".dist-info/" in name and "LICENSE" in name.upper()
    if name.startswith("torch/include/"):
        return True
    if name.startswith("torch/lib/"):
        library = os.path.basename(name)
        return library in CPU_LIBRARIES or (variant != "cpu" and library.endswith(".so") and "python" not in library)
    if name.startswith("nvidia/"):
        return variant != "cpu" or os.path.basename(name) in CPU_CUDA_LIBRARIES
    return False


for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if wanted(member.filename):
                archive.extract(member, folder)

os.mkdir(os.path.join(folder, "lib"))
for library in CPU_LIBRARIES:
    os.symlink(os.path.join("..", "torch", "lib", library), os.path.join(folder, "lib", library))
os.symlink("libgomp.so.1", os.path.join(folder, "lib", "libgomp.so"))
with open(os.path.join(folder, "lib", "libtorch.so"), "w") as script:
    script.write("INPUT(-ltorch_cpu)\n")
os.symlink(os.path.join("torch", "include"), os.path.join(folder, "include"))
with open(os.path.join(folder, "build-version"), "w") as version:
    version.write("2.13.0\n")  # torch-sys checks it
