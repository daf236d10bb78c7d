"""Write a first ``.env``: the example, filled in with new keys and passwords.

``python3 deploy/docker/new_env.py .env.example .env``; an existing file is never overwritten.
"""

from __future__ import annotations

import os
import re
import secrets
import sys


def fill_in(example: str) -> str:
    """Return the example's text with new values for the secrets that the Compose file needs."""
    values = {
        "LIVEKIT_API_KEY": f"API{secrets.token_hex(6)}",
        "LIVEKIT_API_SECRET": secrets.token_hex(32),
        "POSTGRES_PASSWORD": secrets.token_hex(24),
    }
    for name, value in values.items():
        example, found = re.subn(rf"(?m)^# {name}=$", f"{name}={value}", example)
        if found != 1:
            raise ValueError(f"the example must have one line '# {name}='")
    return example


def main(source: str, target: str) -> None:
    with open(source, encoding="utf-8") as file:
        text = fill_in(file.read())
    # Created readable by its owner alone. O_EXCL: an existing file is kept.
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"{target} written, with new keys; look through it before going public")


if __name__ == "__main__":
    main(*sys.argv[1:])
