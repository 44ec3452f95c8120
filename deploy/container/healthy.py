#!/usr/bin/env python3
"""The container's health: the front door answers, which it also does with 401 where keys are wanted."""

import http.client
import os
import ssl
import sys

_SECONDS = 5
_OWN_FAULT = 500
_FROM_HERE = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- whoever listens there


def main() -> int:
    """0 where it answers, 1 where it does not, or only with a fault of its own."""
    connection = _connection()
    try:
        connection.request("GET", "/v1/models")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"the front door does not answer: {error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"the front door answers {status}\n")
    return 0 if status < _OWN_FAULT else 1


def _connection() -> http.client.HTTPConnection:
    host = os.environ.get("RECONCILE_LISTEN_HOST", "127.0.0.1").strip("[]")
    host = _FROM_HERE.get(host, host)
    port = int(os.environ.get("RECONCILE_LISTEN_PORT", "4000"))
    if not os.environ.get("RECONCILE_TLS_CERT_PATH"):
        return http.client.HTTPConnection(host, port, timeout=_SECONDS)
    # It is our own certificate, for another name than it is asked by here, and nothing secret is sent.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=unverified)


if __name__ == "__main__":
    sys.exit(main())
