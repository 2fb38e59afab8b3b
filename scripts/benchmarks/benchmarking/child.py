"""Run one function as a whole process and write down the most memory it held: its peak resident set, in bytes.

    python child.py PEAK_FILE MODULE:FUNCTION [ARGUMENT ...]

The peak is the kernel's own record of this process (VmHWM). The resource usage that a parent gets of its children is
no substitute: it counts what the parent held at the moment of the fork. Only the standard library, so that any
interpreter can run this, and as little of it as possible, since importing it is measured too.
"""

import sys
from importlib import import_module


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


def main() -> None:
    peak_file, target, *arguments = sys.argv[1:]
    module, function = target.split(":")
    del sys.path[0]  # this directory, whose modules are not meant to be found by what runs here
    sys.argv = [function, *arguments]
    try:
        getattr(import_module(module), function)()
    finally:
        with open(peak_file, "w") as file:
            file.write(str(peak_bytes()))


if __name__ == "__main__":
    main()
