"""The command `bsz`: the same code as the program, in the extension module.

The command starts itself again, as the daemon of a mount for example. It then runs this file
without the package and without site-packages, which takes a fraction of the time.
"""
from __future__ import annotations

import os
import sys


def _module():  # type: ignore[no-untyped-def]
    if __name__ != "__main__":
        from . import _native

        return _native
    from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    here = os.path.dirname(os.path.abspath(__file__))
    for suffix in EXTENSION_SUFFIXES:
        path = os.path.join(here, "_native" + suffix)
        if os.path.exists(path):
            loader = ExtensionFileLoader("_native", path)
            spec = spec_from_file_location("_native", path, loader=loader)
            assert spec is not None
            module = module_from_spec(spec)
            loader.exec_module(module)
            return module
    raise ImportError(f"no extension module _native in {here}")


def main() -> int:
    """Run the command on `sys.argv`; returns its exit code."""
    import signal

    # Interrupted, the command cleans up and dies by the signal, like any program that is not a
    # Python one. If it was started to ignore it, Python has left that alone.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    again = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    arguments = ["bsz", *sys.argv[1:]]
    return _module().main(arguments, again)  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
