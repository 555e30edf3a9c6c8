"""Stands in for `ray` until it is imported: then real Ray takes over if it is installed, else servd's alias package."""

import importlib
import os
import sys

from servd.compat import ray_names

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _here]
del sys.modules["ray"]
ray_names.install()
# the import system takes what stands under the name when this file ends
importlib.import_module("ray")
