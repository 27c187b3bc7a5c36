"""Set-up shared by the scripts: a virtual environment with flatsearch in it. Standard library only.

Uses the virtual environment that is active, or `.venv` beside this folder, which is made when it
is missing. Installs only when `pyproject.toml` has changed since the last time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)


def ensure(
    extra: str | None = None, home: Path | None = None, constraints: Path | None = None
) -> Path:
    """Return the folder of the environment's programs, with flatsearch installed.

    Args:
        extra: An extra of pyproject.toml to install too.
        home: The environment's folder; by default the active one's, or `.venv`.
        constraints: A file of versions for pip.

    Returns:
        The environment's `bin` (or `Scripts`) folder.
    """
    if sys.version_info < OLDEST:
        sys.exit(f"flatsearch needs Python {OLDEST[0]}.{OLDEST[1]} or newer, this is {sys.version}")
    active = sys.prefix != sys.base_prefix
    home = home or (Path(sys.prefix) if active else ROOT / ".venv")
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    python = path_of(programs, "python")
    if not python.exists():
        print(f"making a virtual environment in {home}", file=sys.stderr)
        venv.create(home, with_pip=True)
    content = (ROOT / "pyproject.toml").read_bytes()
    wanted = f"{ROOT} {hashlib.sha256(content).hexdigest()}"
    # The extra "test" has what "dashboard" has.
    stamps = [home / f".flatsearch-{name}" for name in {extra or "plain", "test"}]
    if any(stamp.exists() and stamp.read_text() == wanted for stamp in stamps):
        return programs
    print("installing flatsearch (a few minutes if PyTorch is not there yet)", file=sys.stderr)
    # Of PyTorch's files few are ever imported; compiling all takes as long as unpacking them.
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    if constraints:
        install += ["--constraint", constraints]
    install += ["--editable", f"{ROOT}[{extra}]" if extra else ROOT]
    # What pip says goes to standard error: standard output belongs to the command.
    code = subprocess.call(install, stdout=sys.stderr)
    if code:
        sys.exit(f"pip could not install flatsearch into {home} (exit code {code})")
    (home / f".flatsearch-{extra or 'plain'}").write_text(wanted)
    return programs


def path_of(programs: Path, program: str) -> Path:
    """Return where one of the environment's programs is."""
    return programs / (f"{program}.exe" if os.name == "nt" else program)


def run(programs: Path, program: str, *arguments: str, cwd: Path | None = None) -> int:
    """Run one of the environment's programs and return its exit code."""
    try:
        return subprocess.call([path_of(programs, program), *arguments], cwd=cwd)
    except KeyboardInterrupt:
        # The program got the same Ctrl-C and has cleaned up after itself.
        return 130


if __name__ == "__main__":
    ensure(*sys.argv[1:2])
