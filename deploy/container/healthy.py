#!/usr/bin/env python3
"""The container's health: the front door answers, which it also does with 401 where keys are wanted."""

import http.client
import os
import sys

_SECONDS = 5
_OWN_FAULT = 500


def main() -> int:
    """0 where it answers, 1 where it does not, or only with a fault of its own."""
    port = int(os.environ.get("RECONCILE_LISTEN_PORT", "4000"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
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


if __name__ == "__main__":
    sys.exit(main())
