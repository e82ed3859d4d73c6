"""Set-up and run in one command, with nothing but Python 3.11+ and git:

    python3 reproduce.py                   makes .venv from requirements.lock, then builds every table and figure
    python3 reproduce.py acid_figure_5     one of them; or those of a paper: acid, forward_gradient; or the claims
    python3 reproduce.py report            all of them on one page, results/quick/report.html
    python3 reproduce.py -n                what would be done
    python3 reproduce.py --config scale=reduced device=cuda     settings, see docs/settings.md
    python3 reproduce.py test              the same environment, then the tests

More arguments go to Snakemake (its own are listed by `.venv/bin/snakemake --help`) or to pytest. All cores are used
unless `--cores N` says otherwise. The environment is made once, and again when requirements.lock or pyproject.toml
changes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "made-from"


def fail(message):
    """One line, and out."""
    sys.exit(f"reproduce.py: {message}")


def wanted():
    """What the environment is made from: the lock, the package's own needs, and this Python."""
    content = (ROOT / "requirements.lock").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content).hexdigest() + f" {sys.version_info[0]}.{sys.version_info[1]}"


def pip(*arguments):
    """Run pip inside the environment."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *arguments]
    if subprocess.run(command, cwd=ROOT).returncode:
        fail(f"'pip install {' '.join(arguments)}' failed, see above")


def require_python():
    """This file is the one that older Pythons get to see."""
    if sys.version_info < (3, 11):  # noqa: UP036 - see above
        fail("needs Python 3.11 or newer, this is {}".format(sys.version.split()[0]))  # noqa: UP032 - see above


def make_environment():
    """Create .venv unless it is there and current."""
    if STAMP.is_file() and STAMP.read_text() == wanted() and PYTHON.exists():
        return
    print("making .venv from requirements.lock (a few minutes, about 6 GB on Linux)", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    # the Python outside of any environment: this one may be in the .venv that was just removed
    python = getattr(sys, "_base_executable", None) or sys.executable
    if subprocess.run([python, "-m", "venv", str(VENV)]).returncode:
        fail("could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv")
    pip("-r", "requirements.lock")
    pip("--no-deps", "--no-build-isolation", "-e", ".")
    STAMP.write_text(wanted())


def command(arguments):
    """The command that the arguments ask for."""
    if arguments[:1] == ["test"]:
        # one process per core; the tests of a file share what they trained, files in the order of tests/conftest.py
        spread = ["-n", "logical", "--dist", "loadfile", "--no-loadscope-reorder"]
        return [str(PYTHON), "-m", "pytest", *spread, *arguments[1:]]
    cores = [] if any(a.split("=")[0] in ("--cores", "-c", "--jobs", "-j") for a in arguments) else ["--cores", "all"]
    return [str(PYTHON), "-m", "snakemake", *cores, *arguments]


def answer(arguments):
    """What can be said before there is an environment: the help, and that there is no such target."""
    sys.path.insert(0, str(ROOT / "src"))
    from unlocked.artifact import targets

    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nWhat can be built: all, {', '.join(name for name in targets.known(ROOT) if name != 'all')}.")
        sys.exit()
    if line := targets.unknown(arguments, ROOT):
        fail(line)


def main():
    """Make the environment, then become the command."""
    require_python()
    if sys.argv[1:2] != ["test"]:
        answer(sys.argv[1:])
    make_environment()
    os.chdir(ROOT)
    # commands of the environment (snakemake, wandb, unlocked) are found first
    os.environ["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    line = command(sys.argv[1:])
    if os.name == "nt":
        sys.exit(subprocess.run(line).returncode)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
