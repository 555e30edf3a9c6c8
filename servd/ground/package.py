"""Where servd's own files lie. Standard library only."""

import os

PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Directory of the package `servd`; its parent has to be on the import path of every process."""
