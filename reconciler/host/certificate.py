"""Whether the operator's certificate can be served with, and for how long, for `reconcile doctor`."""

import ssl
import subprocess
from pathlib import Path

from reconciler.core.findings import Finding, Level

_CHECK = "certificate"
_DAY = 86400.0
_SOON_DAYS = 14
_OPENSSL_SECONDS = 3.0
_RENEW = "Renew it; docs/tls.md says how the new one is taken over."


def certificate(cert: Path, key: Path, now: float) -> list[Finding]:
    """Findings about a certificate and its key: that they go together, and when it expires.

    Args:
        cert: PEM, the server's own certificate first.
        key: Its private key, PEM.
        now: Seconds since the epoch.
    """
    wrong = _pair(cert, key)
    if wrong:
        why = "What does not run yet is not started with it; what runs goes on with the one before."
        return [Finding(_CHECK, Level.ERROR, f"{cert} with {key}: {wrong}", why, "See docs/tls.md.")]
    return [_expiry(cert, now)]


def _pair(cert: Path, key: Path) -> str:
    """Why these cannot be served with; empty where they can."""
    try:
        # A pipe would be waited for.
        odd = next((path for path in (cert, key) if not path.is_file()), None)
        if odd is not None:
            return f"{odd} is no file"
        # An encrypted key would be asked about at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not that of the certificate"
        return "one of them is no PEM file, or the key is encrypted"
    except OSError as error:
        return f"they cannot be read: {error.strerror}"
    except ValueError:
        return "the key is encrypted"
    return ""


def _expiry(cert: Path, now: float) -> Finding:
    """When the first certificate in the file expires. Python itself only tells that of certificates of others."""
    try:
        found = subprocess.run(  # noqa: S603 -- no shell
            ["openssl", "x509", "-noout", "-enddate", "-in", str(cert.absolute())],  # noqa: S607 -- the system's
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_OPENSSL_SECONDS,
        )
        date = found.stdout.decode("ascii").partition("=")[2].strip()
        left = (ssl.cert_time_to_seconds(date) - now) / _DAY
    except (OSError, subprocess.SubprocessError, ValueError):
        do = "Install openssl, or look at it elsewhere."
        return Finding(_CHECK, Level.NOTE, f"{cert}: it cannot be told when it expires", "", do)
    if left <= 0:
        return Finding(_CHECK, Level.ERROR, f"{cert} expired on {date}", "Clients refuse it.", _RENEW)
    if left < _SOON_DAYS:
        why = "From then on clients refuse it."
        return Finding(_CHECK, Level.WARNING, f"{cert} expires in {left:.0f} days, on {date}", why, _RENEW)
    return Finding(_CHECK, Level.OK, f"{cert} goes with its key, and is valid until {date}")
