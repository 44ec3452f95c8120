"""Commands start without what only the reconciler that stays needs."""

import subprocess
import sys


def test_no_command_waits_for_fastapi() -> None:
    code = (
        "import sys, reconciler.cli.main; print([name for name in sys.modules if name.split('.')[0] == 'fastapi'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
