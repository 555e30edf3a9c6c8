#!/bin/bash
# Guess, before looking: onnxruntime on the CPU opens no file but its own libraries and the model, least of all one to write to.
# Seen: the import alone makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime, with an id of this device and onnxruntime.db, a database of
# SQLite with a log, which stay open for writing as long as the process lives. So a process that only computes has a database in use: whoever
# forks it, counts its descriptors or gives it a home of its own meets one.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q onnxruntime==1.32.0
mkdir "$directory/home"
cat > "$directory/imports.py" <<'END_OF_IMPORTS'
import os
import pathlib

home = pathlib.Path(os.environ["HOME"])


def made():
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def kept_open():
    links = [pathlib.Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    paths = {os.readlink(link) for link in links if link.is_symlink()}
    return sorted(path.removeprefix(f"{home}/") for path in paths if path.startswith(str(home)))


import numpy

assert (made(), kept_open()) == ([], [])
import onnxruntime

print("onnxruntime", onnxruntime.__version__)
print("made:", *made(), sep="\n  ")
print("open:", *kept_open(), sep="\n  ")
folder = ".cache/Microsoft/DeveloperTools/.onnxruntime"
database = [f"{folder}/onnxruntime.db{end}" for end in ("", "-shm", "-wal")]
assert made() == [f"{folder}/deviceid", *database]
assert kept_open() == database
assert (home / database[0]).read_bytes().startswith(b"SQLite format 3")
assert len((home / folder / "deviceid").read_text().strip()) == 36
END_OF_IMPORTS
HOME="$directory/home" "$directory/venv/bin/python" "$directory/imports.py"
