"""`python -m bszfs run PROGRAM`; with anything else, the command `bsz`."""
import sys


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        from ._run import main as run

        run(sys.argv[2:])
    else:
        from ._cli import main as bsz

        sys.exit(bsz())


if __name__ == "__main__":
    main()
