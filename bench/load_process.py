"""Our end of the load generator: start its process, give it jobs, take its slices."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator

from bench.load import Job, Slice
from bench.machine import BenchError


class LoadProcess:
    """A running load generator."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, job: Job) -> Slice:
        """Have one job done.

        Raises:
            BenchError: A request failed, so that the numbers would be those of something else.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._process.stdin.flush()
        done = Slice(**json.loads(self._read()))
        if done.failures:
            raise BenchError(f"{len(done.failures)} requests failed, the first: {done.failures[0]}")
        return done

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the load generator ended (exit code {self._process.wait(10)})")
        return line


@contextlib.contextmanager
def load_process() -> Iterator[LoadProcess]:
    """A load generator that ends with the block."""
    command = [sys.executable, "-m", "bench.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield LoadProcess(process)
        finally:
            process.kill()
