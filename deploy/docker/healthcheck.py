"""Container health check: fails unless the address answers with 200 (the images have no curl)."""

import sys
from urllib.error import URLError
from urllib.request import urlopen

TIMEOUT_S = 3


def main(url: str) -> str | None:
    """Return the fault; None if the service is healthy."""
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response:
            status = response.status
    except (URLError, TimeoutError) as error:
        return f"{url}: {error}"
    return None if status == 200 else f"{url}: HTTP {status}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
