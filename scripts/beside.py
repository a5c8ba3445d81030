"""What `pip install stockpot[EXTRAS]` would change in an environment that has other versions.

    python scripts/beside.py torch torch==2.9.1 numpy==1.26.4 transformers==4.57.0

An environment is made in which pip finds these versions: stubs of their metadata, without code
and without what they need, so that no gigabytes are fetched for a question to the resolver. Exits
with 1 where one of them would change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stub(packages: Path, name: str, version: str) -> None:
    """Have pip find `name` installed."""
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


def changes(extras: str, pins: dict[str, str]) -> dict[str, str]:
    """What pip would install beside `pins`: name → version."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        packages = next(Path(folder).rglob("site-packages"))
        for name, version in pins.items():
            stub(packages, name, version)
        target = f"{ROOT}[{extras}]" if extras else str(ROOT)
        command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", target]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(out)["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in found}


def main() -> int:
    """Print it; 1 where a pin would change."""
    extras, *given = sys.argv[1:]
    pins = dict(pin.split("==") for pin in given)
    found = changes(extras, pins)
    for name, version in sorted(found.items()):
        was = f" (was {pins[name]})" if name in pins else ""
        print(f"{name} {version}{was}")
    kept = [name for name in pins if name not in found]
    print(f"unchanged: {', '.join(f'{name} {pins[name]}' for name in kept) or 'none'}")
    return int(len(kept) < len(pins))


if __name__ == "__main__":
    sys.exit(main())
