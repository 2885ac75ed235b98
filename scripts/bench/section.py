"""Writes a generated section of a document in docs/measurements, between two comments."""
import platform


def machine(cores: int) -> str:
    """Returns the number of cores and the CPU model, such as `2 cores of AMD EPYC`."""
    with open("/proc/cpuinfo") as file:
        names = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
        return f"{cores} cores of {next(names, platform.machine())}"


def write_section(path: str, name: str, script: str, text: str) -> None:
    """Replaces the section `name` of the file, or appends it, and prints the text."""
    begin, end = f"<!-- {name}: written by {script} -->\n", f"<!-- end of {name} -->\n"
    try:
        with open(path) as file:
            before = file.read()
    except FileNotFoundError:
        before = "# Benchmarks\n\nEach section is written by the script that it names.\n"
    if begin not in before:
        before += f"\n{begin}{end}"
    head, rest = before.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, "w") as file:
        file.write(f"{head}{begin}\n{text}\n{end}{tail}")
    print(text)
