"""Run one function as a whole process, and write its peak resident memory, in bytes, into a file.

    python child.py PEAK_FILE MODULE:FUNCTION [ARGUMENT ...]

The peak is the kernel's own record of this process (VmHWM). The resource usage that a parent gets of its children
cannot replace it, since it includes the parent's memory at the moment of the fork. The module imports only the
standard library, so that any interpreter can run it, and as little of that as possible, since imports are measured.
"""

import sys
from importlib import import_module


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2)
    peak_file, target, *arguments = sys.argv[1:]
    module, function = target.split(":")
    del sys.path[0]  # this directory, whose modules the measured function must not find
    sys.argv = [function, *arguments]
    try:
        getattr(import_module(module), function)()
    finally:
        with open(peak_file, "w") as file:
            file.write(str(peak_bytes()))


if __name__ == "__main__":
    main()
