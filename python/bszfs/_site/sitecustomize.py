"""Imported by Python at its start, in children of `python -m bszfs run`: installs the same there.

It takes the place of another `sitecustomize`, and so imports that one as well.
"""
import importlib.machinery
import importlib.util
import os
import sys


def _next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_next()
if os.environ.get("BSZFS_PATCH"):
    # Another environment's Python may run as a child, without this package.
    if importlib.util.find_spec("bszfs") is not None:
        from bszfs._run import install_from_environment

        install_from_environment()
