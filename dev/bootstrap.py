"""Makes ``.venv`` from a lock file: ``python3 dev/bootstrap.py .venv requirements-dev.txt``.

Run by make before anything is installed, so: standard library only, and syntax
that an old Python can read far enough to say that it is too old.
"""

import subprocess
import sys
import time

NEEDED = (3, 11)


def main(venv, lock):
    if sys.version_info < NEEDED:
        return (
            "Switchroom needs Python %d.%d or newer; this is %d.%d (%s).\n"
            "Install a newer one, then name it: make PYTHON=python3.13 …"
            % (NEEDED + tuple(sys.version_info[:2]) + (sys.executable,))
        )
    started = time.monotonic()
    print("creating %s with Python %d.%d" % ((venv,) + tuple(sys.version_info[:2])), flush=True)
    # --clear: what an older lock had and the new one has not must not stay behind.
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv])
    if made.returncode != 0:
        return "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"
    failed = install(venv + "/bin/python", lock, started)
    if failed:
        return failed
    print("packages installed in %.0f s" % (time.monotonic() - started), flush=True)
    return None


def install(python, lock, started):
    with open(lock, encoding="utf-8") as file:
        total = sum("==" in line for line in file)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    process = subprocess.Popen(
        pip + ["--progress-bar", "off", "--require-hashes", "-r", lock],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    live = sys.stdout.isatty()
    printed, collected, tail = started, 0, []
    for line in process.stdout:
        tail = tail[-19:] + [line]
        collected += line.startswith("Collecting ")
        now = time.monotonic()
        if now - printed < (0.1 if live else 5) and not line.startswith("Installing "):
            continue
        printed = now
        what = "%d of about %d packages fetched" % (collected, total)
        if line.startswith("Installing "):
            what = "installing %d packages" % collected
        text = "  %s, %.0f s" % (what, now - started)
        print("\r%-60s" % text if live else text, end="" if live else "\n", flush=True)
    if live:
        print()
    if process.wait() != 0:
        return "".join(tail) + "\npip could not install %s" % lock
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
