#!/usr/bin/env python
"""Prints how far we are from the PyTorch reference on a folder of golden vectors.

    python scripts/verify_reference.py DIR [FILE.npz ...]

Every quantity gets its largest relative error, in float64. Exit status 1 when one exceeds
its tolerance, 2 when the folder cannot be used.
"""

import argparse
import pathlib
import sys

import jax


def main() -> int:
    """Checks the files and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("files", nargs="*", help="only these files of the folder")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    # Of the checkout that this script stands in, installed or not.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from darts_jax import verification
    from darts_jax.errors import UserError

    compared = failed = 0
    try:
        paths = verification.golden_files(arguments.directory, arguments.files)
        for path in paths:
            kind, checks = verification.verify_file(path)
            if kind == "recurrent":
                print(f"{path.name}: skipped, recurrent cells are not there yet")
                continue
            print(f"{path.name}: {kind}", flush=True)
            for check in checks:
                verdict = "ok" if check.passed else "FAILED"
                compared += 1
                failed += not check.passed
                print(
                    f"  {check.quantity:<55} {check.error:.1e}"
                    f"  (at most {check.tolerance:.0e})  {verdict}",
                    flush=True,
                )
        if not compared:
            raise UserError(f"nothing to compare in {str(arguments.directory)!r}")
    except UserError as error:
        print(f"verify_reference: error: {error}", file=sys.stderr)
        return 2
    print(
        f"{failed} of {compared} quantities exceed their tolerance"
        if failed
        else f"all {compared} quantities agree"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
