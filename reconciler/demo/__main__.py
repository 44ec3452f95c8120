"""`python -m reconciler.demo FOLDER`: make the demo's files in FOLDER, and print how to talk to its models."""

import argparse
import os
import sys
from pathlib import Path

from reconciler.demo.files import DemoError, curl_lines, make_demo


def main() -> int:
    """Make the files, print the `curl` lines."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="the demo's own folder; models.d and weights are made in it")
    parser.add_argument("--address", default="http://127.0.0.1:4000", help="the front door (default: %(default)s)")
    options = parser.parse_args()
    accelerator = "auto" if os.environ.get("RECONCILE_ENGINE") == "cuda" else "cpu"
    try:
        made = make_demo(options.folder, accelerator=accelerator)
    except DemoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for path in made:
        sys.stdout.write(f"made {path}\n")
    sys.stdout.write(f"\nOnce the models are up, talk to them:\n\n{curl_lines(options.address)}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
