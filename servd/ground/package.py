"""Where servd's own files lie, and what they are called. Standard library only."""

import os

PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Directory of the package `servd`; its parent has to be on the import path of every process."""
DISTRIBUTION = "servd-serve"
"""What pip calls servd: `servd` on the package index is somebody else's."""
VERSION = "0.1.0"
"""The one place where it stands."""
PROTOCOL = 1
"""Number of the form of everything that processes of servd say to each other, and of the facts on disk.

It grows where that changes in another way than by fields with defaults at the end of a message and by further messages
(`tests/house/test_forms.py` tells), and `servd.controller.fact_store` gets a migration then.
"""
