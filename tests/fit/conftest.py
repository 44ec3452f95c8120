"""The benchmark is no part of the package; the tests use its comparison with what was logged."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
