#!/bin/bash
# Guess, before looking: the random numbers by which a tokenizer of tokenizers drops merges (`BPE(dropout=0.5)`) are new ones in each forked
# child, as those of CPython's `random` are, for which the interpreter sees to that.
# Seen: where the parent has encoded something, all its children go on with the parent's generator: they break the same words in the same
# places, one by one. A thread that a child starts has a generator of its own, and draws others. There is no way to seed either.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q tokenizers==0.23.3
cat > "$directory/children.py" <<'END_OF_CHILDREN'
import os
import threading

import tokenizers
from tokenizers import Tokenizer, models, trainers

TEXT = "abcdefghijklmnop" * 4
tokenizer = Tokenizer(models.BPE(dropout=0.5))
tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(show_progress=False))


def broken():
    return "|".join(tokenizer.encode(TEXT).tokens)


def in_a_child(work):
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, work().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as end:
        return end.read()


def on_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(broken()))
    thread.start()
    thread.join()
    return found[0]


print("tokenizers", tokenizers.__version__)
parents = {broken() for _ in range(20)}
same = {in_a_child(broken) for _ in range(20)}
other = {in_a_child(on_a_thread) for _ in range(20)}
print("of 20 times different in one process:", len(parents))
print("of 20 children different:", len(same), "on the thread that forked,", len(other), "on threads of their own")
assert len(parents) > 10
assert len(same) == 1
assert len(other) > 10
END_OF_CHILDREN
"$directory/venv/bin/python" "$directory/children.py"
