"""A section of docs/benchmarks.md that a script writes, between two comments."""
import platform


def machine(cores: int) -> str:
    """`2 cores of AMD EPYC`."""
    with open("/proc/cpuinfo") as file:
        names = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
        return f"{cores} cores of {next(names, platform.machine())}"


def write_section(path: str, name: str, script: str, text: str) -> None:
    """Puts `text` where the section `name` stands in the file, or at its end; prints it."""
    begin, end = f"<!-- {name}: written by {script} -->\n", f"<!-- end of {name} -->\n"
    try:
        with open(path) as file:
            before = file.read()
    except FileNotFoundError:
        before = "# Benchmarks\n\nEach section is written by the script it names, each of its parts from one run.\n"
    if begin not in before:
        before += f"\n{begin}{end}"
    head, rest = before.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, "w") as file:
        file.write(f"{head}{begin}\n{text}\n{end}{tail}")
    print(text)
