"""Writes a first ``.env``: the example with keys and passwords of its own filled in.

``python3 deploy/docker/new_env.py .env.example .env``; never overwrites one.
"""

from __future__ import annotations

import os
import re
import secrets
import sys


def fill_in(example: str) -> str:
    """The example's text with new secrets where the Compose file needs one."""
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
    # Readable by its owner alone, from the start; O_EXCL: an existing one is kept.
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"{target} written, with new keys; look through it before going public")


if __name__ == "__main__":
    main(*sys.argv[1:])
