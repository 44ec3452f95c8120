"""The wrapper around Serve's HAProxy: every port on loopback, or no HAProxy at all."""

import os
import subprocess
from pathlib import Path

import pytest

WRAPPER = Path(__file__).resolve().parents[2] / "deploy" / "haproxy-loopback.sh"


@pytest.fixture
def haproxy(tmp_path: Path) -> Path:
    """Stands in for the real program and prints its arguments."""
    program = tmp_path / "haproxy"
    program.write_text('#!/bin/sh\necho started "$@"\n')
    program.chmod(0o755)
    return program


def run(haproxy: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HAPROXY_REAL": str(haproxy)}
    return subprocess.run(
        [WRAPPER, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("address", ["*:8404", ":8404", "0.0.0.0:8404", "[::]:8404", ":::8404", "127.0.0.1:8404"])
def test_every_interface_becomes_loopback(haproxy: Path, tmp_path: Path, address: str) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    stats socket /run/admin.sock mode 666 level admin expose-fd listeners\n"
        f"listen stats\n  bind {address}\n  stats enable\nfrontend f\n\tbind\t{address} proto h2\n"
        "    default_backend b\nbackend b\n    server s 192.0.2.1:8404\n"
    )
    result = run(haproxy, "-db", "-f", config, "-dR", "-sf", "12")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["started", "-db", "-f", str(config), "-dR", "-sf", "12"]
    assert config.read_text() == (
        "global\n    stats socket /run/admin.sock mode 600 level admin expose-fd listeners\n"
        "listen stats\n  bind 127.0.0.1:8404\n  stats enable\nfrontend f\n\tbind\t127.0.0.1:8404 proto h2\n"
        "    default_backend b\nbackend b\n    server s 192.0.2.1:8404\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "bind 192.0.2.1:80",
        "bind 127.0.0.1:80,*:81",
        "bind ipv4@*:80",
        "bind *:80-90",
        "bind fd@3",
        "bind",
        "dgram-bind :514",
        "stats socket ipv4@*:9999 level admin",
        "stats socket /run/admin.sock level admin",
    ],
)
def test_what_it_cannot_close_is_not_started(haproxy: Path, tmp_path: Path, line: str) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"frontend f\n    {line}\n")
    result = run(haproxy, "-f", config)
    assert result.returncode == 1
    assert "started" not in result.stdout
    assert line.split(maxsplit=1)[0] in result.stderr


@pytest.mark.parametrize("arguments", [["-f", "/nonexistent.cfg"], ["-f/etc/x.cfg"], ["--", "x.cfg"]])
def test_a_configuration_that_it_cannot_read_is_not_started(haproxy: Path, arguments: list[str]) -> None:
    result = run(haproxy, *arguments)
    assert result.returncode == 1
    assert "started" not in result.stdout


def test_without_a_configuration_it_is_haproxy(haproxy: Path) -> None:
    assert run(haproxy, "-v").stdout.split() == ["started", "-v"]


def test_the_program_must_exist(tmp_path: Path) -> None:
    result = run(tmp_path / "absent", "-v")
    assert result.returncode == 1
    assert "absent" in result.stderr
