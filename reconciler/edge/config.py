"""HAProxy's configuration from its template and the options. Pure.

Every value goes through a filter that checks its form, so that none can bring a line of its own.
"""

import hashlib
import ipaddress
import re

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reconciler.core.endpoints import ROUTED_PATHS
from reconciler.edge.options import EdgeOptions
from reconciler.edge.replies import reply_files

_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*")
_PATH = re.compile(r"(?:/[a-z0-9_]+)+")
_LAST_PORT = 65535
_SMALLEST_BUFFER = 16384
_LARGEST_BUFFER = 64 * 2**20
_LARGEST_SOCKET_PATH = 100
"""Bytes. The kernel takes 107, and HAProxy binds a longer, temporary name first where it can."""


def render_config(template_text: str, options: EdgeOptions) -> str:
    """The text of edge.cfg.

    Args:
        template_text: The template (templates/edge.cfg.j2, or the operator's own).
        options: What goes into it.

    Raises:
        ValueError: The template fails, or an option has a value that HAProxy cannot take.
    """
    _check(options)
    # No escaping, for this is not HTML: each value passes one of the filters.
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(address=_address, number=_number, path=_path)
    try:
        return environment.from_string(template_text).render(
            listen=(options.listen_host, options.listen_port),
            activator=(options.activator_host, options.activator_port),
            serve=(options.serve_host, options.serve_port),
            paths=ROUTED_PATHS,
            body_buffer_bytes=options.body_buffer_bytes,
            max_connections=options.max_connections,
            threads=options.threads,
            tls=options.tls_cert is not None,
            revision_header=options.revision_header,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"edge.cfg.j2: {error}") from error


def fingerprint(config_text: str, pem: str = "") -> str:
    """What tells one configuration, replies and certificate included, from another: 16 hexadecimal digits."""
    parts = [config_text, pem, *(text for _, text in sorted(reply_files().items()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def stamp(config_text: str, pem: str = "") -> str:
    """The configuration with its fingerprint as HAProxy's `description`, which a running process can be asked for.

    The file on disk says what should run; after a failed reload that is not what does.
    """
    return f"{config_text.rstrip()}\n\nglobal\n    description {fingerprint(config_text, pem)}\n"


def _check(options: EdgeOptions) -> None:
    folder = str(options.folder)
    if not options.folder.is_absolute() or not folder.isprintable():
        raise ValueError(f"the edge's folder must be an absolute path of printable characters, not {folder!r}")
    if len(bytes(options.socket_file)) > _LARGEST_SOCKET_PATH:
        raise ValueError(
            f"the edge's folder {folder} is too long: its socket's path may have {_LARGEST_SOCKET_PATH} bytes"
        )
    if not _SMALLEST_BUFFER <= options.body_buffer_bytes <= _LARGEST_BUFFER:
        raise ValueError(
            f"body_buffer_bytes must lie between {_SMALLEST_BUFFER} and {_LARGEST_BUFFER}, "
            f"not {options.body_buffer_bytes}"
        )
    if options.max_connections < 1 or options.threads < 0:
        raise ValueError("max_connections must be at least 1 and threads at least 0")
    if options.tls_key is not None and options.tls_cert is None:
        raise ValueError(f"there is a key for TLS, {options.tls_key}, and no certificate")


def _address(value: tuple[str, int]) -> str:
    host, port = value
    if not 0 < int(_number(port)) <= _LAST_PORT:
        raise ValueError(f"{port} is not a port")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(f"{host!r} is neither an address nor a host name") from None
        return f"{host}:{port}"
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"  # noqa: PLR2004 -- IPv6


def _number(value: int) -> str:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return str(value)


def _path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise ValueError(f"{value!r} is not a plain path")
    return value
