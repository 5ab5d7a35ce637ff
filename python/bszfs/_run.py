"""`python -m bszfs run`: a program under `bszfs.patched`, and its child processes, too."""
from __future__ import annotations

import argparse
import os
import runpy
import sys

from ._patch import install

# What the children are to do: the directories, separated as in PATH, or "*" for all.
VARIABLE = "BSZFS_PATCH"
# The folder with the `sitecustomize` that asks for this.
SITE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_site")


def install_from_environment() -> None:
    """Install what the environment asks for, if it does."""
    wanted = os.environ.get(VARIABLE)
    if wanted:
        install(None if wanted == "*" else wanted.split(os.pathsep))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bszfs run",
        description="Run a Python program that finds and loads archives as if the original files"
        " were there, without FUSE. Its child processes do, too.",
    )
    parser.add_argument("--dir", action="append", dest="dirs", metavar="DIR",
                        help="only below DIR; may be given several times (default: everywhere)")
    parser.add_argument("-m", action="store_true", dest="module",
                        help="PROGRAM is the name of a module, as with python -m")
    parser.add_argument("program", help="the path of a Python program")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments for it")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    options = _parse(argv)
    dirs = [os.path.abspath(one) for one in options.dirs] if options.dirs else None
    os.environ[VARIABLE] = os.pathsep.join(dirs) if dirs else "*"
    paths = [SITE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    install(dirs)
    sys.argv = [options.program, *options.args]
    if options.module:
        sys.path[0] = os.getcwd()
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(options.program))
        runpy.run_path(options.program, run_name="__main__")
