"""Where the edge listens and what it forwards to: fixed while it runs, pure."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EdgeOptions:
    """What one edge is started with.

    Attributes:
        folder: Its state: edge.cfg, its maps, edge.pem, edge.sock, edge.pid, edge.log, edge.lock and errors/.
        listen_host: The address of the front door. Only loopback unless the operator decides otherwise.
        listen_port: Its port.
        activator_host: Where everything goes that names no hot model.
        activator_port: Its port.
        serve_host: Ray Serve's HTTP address.
        serve_port: Its port.
        body_buffer_bytes: The buffer of one connection; a body has to fit it (about 1.3 kB go to headers and
            bookkeeping) for its `model` to be found wherever it stands in the body.
        max_connections: Client connections at one time; further ones wait in the kernel's queue.
        threads: HAProxy's threads; 0 leaves the number to it.
        tls_cert: A PEM file with the certificate and its chain: the front door speaks TLS, and nothing else.
        tls_key: A PEM file with its key; None where `tls_cert` holds it too.
        revision_header: Responses of hot models say which commit the model comes from.
    """

    folder: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = 4000
    activator_host: str = "127.0.0.1"
    activator_port: int = 4001
    serve_host: str = "127.0.0.1"
    serve_port: int = 8100
    body_buffer_bytes: int = 262144
    max_connections: int = 4096
    threads: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    revision_header: bool = False

    @property
    def config_file(self) -> Path:
        """The configuration that the process was last told to run."""
        return self.folder / "edge.cfg"

    @property
    def pem_file(self) -> Path:
        """Certificate and key as HAProxy reads them, where the front door speaks TLS."""
        return self.folder / "edge.pem"

    @property
    def socket_file(self) -> Path:
        """The runtime API."""
        return self.folder / "edge.sock"

    @property
    def pid_file(self) -> Path:
        """The process id of HAProxy's master, written by HAProxy."""
        return self.folder / "edge.pid"

    @property
    def log_file(self) -> Path:
        """What HAProxy says; requests are not logged."""
        return self.folder / "edge.log"

    @property
    def lock_file(self) -> Path:
        """Held by whoever starts, reloads or stops the process."""
        return self.folder / "edge.lock"
