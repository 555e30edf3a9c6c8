"""Wheels made on the spot: packages to install without an index."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def a_wheel(
    folder: Path,
    name: str,
    files: str | Mapping[str, str],
    *,
    version: str = "1.0",
    requires: str = "",
    script: str = "",
) -> Path:
    """A wheel in `folder`. files: the text of its one module, or the text of each file by path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {f"{name}.py": files}.items() if isinstance(files, str) else files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        if script:
            wheel.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{script}={name}:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def built_wheel(folder: Path) -> Path:
    """What `make wheel` builds, in `folder`.

    It is built from a copy: what lies in the checkout beside the sources shall not get into it, nor the build into the checkout.
    """
    with tempfile.TemporaryDirectory() as home:
        for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "servd_entry.py"):
            shutil.copy(ROOT / name, home)
        shutil.copytree(ROOT / "servd", Path(home) / "servd", ignore=shutil.ignore_patterns("__pycache__"))
        command = ["make", "wheel", f"PYTHON={sys.executable}"]
        subprocess.run(command, cwd=home, check=True, capture_output=True, timeout=300)
        (found,) = (Path(home) / "dist").glob("*.whl")
        return Path(shutil.copy(found, folder))
