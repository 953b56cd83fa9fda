"""``python -m suite.gpu``: ``suite gpu`` without the packages of the command line."""

import argparse
import sys
from collections.abc import Sequence

from suite.codes import INFRASTRUCTURE, USAGE
from suite.gpu.command import DEFAULT_MINUTES, command


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options and do it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m suite.gpu",
        description="Do all that needs an NVIDIA GPU, within minutes; the next call goes on.",
    )
    parser.add_argument("--budget-minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--store", default="results")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE")
    parser.add_argument("--task", action="append", default=[], metavar="TASK")
    given = parser.parse_args(argv)
    try:
        return command(given.budget_minutes, given.store, given.only, given.task)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return INFRASTRUCTURE


if __name__ == "__main__":
    sys.exit(main())
