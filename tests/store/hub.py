#!/usr/bin/env python3
"""Check that the hub's own clients behave on a mounted cache as on a plain directory.

    hub.py --plain-only --work DIR         only on a plain directory: checks the checks
    hub.py --bsz BSZ --work DIR            also on mounts by the program BSZ, one after another:
        store       bsz mount DIR/store, without packing
        packed      the same, and all that was downloaded is packed before it is used
        live        packing goes on all the time
    hub.py --cache DIR [--pack CMD] --work DIR     also on this empty directory, whatever it is; CMD
                                           is a shell command that packs what was downloaded
    --quick         one download, load, verify and rm, without torch: well under a minute
    --stages A,B    only these of store, packed, live

Clients are real: huggingface_hub 2 and 0.36, each with and without hf_xet, and transformers; each
call is a process of its own. The hub is tests/store/hub_server.py, on loopback. The outcome of each
check is compared with that of the same check on a plain directory. A line says `ok STAGE/CHECK` or
`FAIL STAGE/CHECK: what`; the exit code is 1 if any failed. HUB_VERBOSE=1 shows what the clients
print.

The clients are installed into target/store-tools, or --tools, on the first run. DIR must not exist;
it is removed at the end unless --keep is given.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from hub_checks import checks
from hub_server import LARGE, Hub
from hub_stage import HERE, MOUNT, MOUNT_PACKING, PACK_NOW, Failed, Stage

TOOLS = HERE.parents[1] / "target/store-tools"
STAGES = {"store": (MOUNT, None), "packed": (MOUNT, PACK_NOW), "live": (MOUNT_PACKING, PACK_NOW)}


def install(tools, name):
    """Make an environment from requirements-NAME.txt, unless it is there; return where its
    packages are."""
    wanted, venv = HERE / f"requirements-{name}.txt", tools / f"venv-{name}"
    stamp = venv / "requirements.txt"
    if not (stamp.exists() and stamp.read_text() == wanted.read_text()):
        print(f"hub.py: installing {venv}", file=sys.stderr)
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check",
                        "-r", wanted], check=True)
        shutil.copy(wanted, stamp)
    return next(venv.glob("lib/python*/site-packages"))


def install_all(tools, quick):
    if quick:
        install(tools, "hub2")
        return
    torch = install(tools, "torch")
    for name in ["hub2", "hub036"]:
        # One torch for both, as it is large; their own packages come first.
        (install(tools, name) / "torch.pth").write_text(f"{torch}\n")


def make_repos(work, tools, quick):
    """Make what the hub serves, and fill the xet store; return {large file: xet hash}."""
    python, repos = tools / "venv-hub2/bin/python", work / "repos"
    small = ["--small"] if quick else []
    subprocess.run([python, HERE / "hub_models.py", *small, repos], check=True)
    large = [path for path in repos.rglob("*") if path.is_file() and path.stat().st_size >= LARGE]
    # Files with several links once, so that the store is filled once.
    first = {}
    for path in large:
        first.setdefault(path.stat().st_ino, str(path))
    done = subprocess.run([python, HERE / "hub_server.py", "fill", work / "xet", *first.values()],
                          check=True, stdout=subprocess.PIPE, text=True,
                          env={"PATH": os.environ["PATH"], "HOME": str(work / "home")})
    hashes = json.loads(done.stdout)
    return {str(path): hashes[first[path.stat().st_ino]] for path in large}


def difference(plain, here, at=""):
    """Where two outcomes differ first, in words; None if they are the same."""
    if isinstance(plain, dict) and isinstance(here, dict):
        for key in [*plain, *here]:
            if key not in plain or key not in here:
                return f"{at}/{key}: {'only' if key in here else 'not'} here"
            if found := difference(plain[key], here[key], f"{at}/{key}"):
                return found
    elif isinstance(plain, list) and isinstance(here, list) and len(plain) == len(here):
        for number, pair in enumerate(zip(plain, here)):
            if found := difference(*pair, f"{at}[{number}]"):
                return found
    elif plain != here:
        return f"{at}: {here!r:.300}, on the plain directory {plain!r:.300}"
    return None


def run_check(stage, name, check):
    """Run one check; return what is wrong, or None."""
    try:
        outcome = stage.outcomes[name] = check(stage)
    except Failed as failed:
        return str(failed)
    except Exception as error:  # noqa: BLE001  whatever a broken mount makes of a check
        return f"{type(error).__name__}: {error}"
    if stage.plain is None:
        return None
    if name not in stage.plain.outcomes:
        return "it failed on the plain directory"
    return difference(stage.plain.outcomes[name], outcome)


def run_stage(stage, quick):
    """Run all checks in a stage, printing a line for each; return how many failed."""
    failures = 0
    for repo in stage.hub.repos:
        stage.hub.main(repo, 1)
    try:
        stage.mount()
        for name, check in checks(quick):
            started, stage.notes = time.monotonic(), []
            wrong = run_check(stage, name, check)
            failures += wrong is not None
            notes = ", ".join([*stage.notes, f"{time.monotonic() - started:.1f} s"])
            print(f"FAIL {stage.name}/{name}: {wrong}" if wrong else
                  f"ok {stage.name}/{name} ({notes})", flush=True)
        stage.unmount()
    except Failed as failed:
        print(f"FAIL {stage.name}: {failed}", flush=True)
        failures += 1
    finally:
        stage.clean()
    return failures


def shell(command):
    """The words that run a shell command, in which {} mean nothing to Stage.run; or None."""
    return command and ["sh", "-c", command.replace("{", "{{").replace("}", "}}")]


def run(args, work):
    install_all(args.tools, args.quick)
    xet = make_repos(work, args.tools, args.quick)
    with Hub(work / "repos", work / "xet", xet) as hub:
        def stage(name, cache, **more):
            home = work / f"home-{name}"
            return Stage(name, cache, hub, args.tools, home, **more)

        plain = stage("plain", work / "plain")
        failures = run_stage(plain, args.quick)
        if args.cache:
            given = stage("given", args.cache.resolve(), plain=plain, pack=shell(args.pack))
            failures += run_stage(given, args.quick)
        for name in (args.stages or ("packed" if args.quick else ",".join(STAGES))).split(","):
            if args.bsz:
                mount, pack = STAGES[name]
                failures += run_stage(stage(name, work / name, plain=plain, bsz=args.bsz,
                                            mount=mount, pack=pack), args.quick)
    return failures


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--plain-only", action="store_true")
    parser.add_argument("--bsz", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path)
    parser.add_argument("--pack")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--tools", type=pathlib.Path, default=TOOLS)
    parser.add_argument("--stages")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if not (args.plain_only or args.bsz or args.cache):
        parser.error("give --bsz BSZ, --cache DIR or --plain-only")
    args.bsz, args.tools = args.bsz and args.bsz.resolve(), args.tools.resolve()
    work = args.work.resolve()
    work.mkdir(parents=True)
    try:
        failures = run(args, work)
    finally:
        if not args.keep:
            shutil.rmtree(work)
    print(f"{failures} failed" if failures else "all ok")
    sys.exit(min(failures, 1))


if __name__ == "__main__":
    main()
