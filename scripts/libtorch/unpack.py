"""Unpacks libtorch from PyPI wheels: unpack.py cpu|cu13 DIRECTORY WHEEL...

DIRECTORY/torch/{lib,include} and DIRECTORY/nvidia/ keep the layout of the wheels, because
libtorch_cpu.so finds its dependencies by paths relative to its own. The build uses DIRECTORY/lib and
DIRECTORY/include, which hold links to the CPU libraries and a linker script libtorch.so that names
only libtorch_cpu.so. With the libtorch.so of the wheel, every binary would load CUDA at start. CUDA
is loaded at run time if it is available.
"""
import os
import sys
import zipfile

variant, directory, wheels = sys.argv[1], sys.argv[2], sys.argv[3:]
CPU_LIBRARIES = ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")
CPU_CUDA_LIBRARIES = ("libcudart.so.13", "libcupti.so.13")  # dependencies of libtorch_cpu.so


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
                archive.extract(member, directory)

os.mkdir(os.path.join(directory, "lib"))
for library in CPU_LIBRARIES:
    os.symlink(os.path.join("..", "torch", "lib", library), os.path.join(directory, "lib", library))
os.symlink("libgomp.so.1", os.path.join(directory, "lib", "libgomp.so"))
with open(os.path.join(directory, "lib", "libtorch.so"), "w") as script:
    script.write("INPUT(-ltorch_cpu)\n")
os.symlink(os.path.join("torch", "include"), os.path.join(directory, "include"))
with open(os.path.join(directory, "build-version"), "w") as version:
    version.write("2.13.0\n")  # torch-sys checks this file
