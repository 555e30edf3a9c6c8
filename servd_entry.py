"""Entry of the `servd` command. It stands beside the package, to tell where another package of that name hides it."""

import sys


def main() -> None:
    """Run the command; end with one sentence where `import servd` gives something else."""
    try:
        import servd
        from servd.ground.package import VERSION

        is_ours = servd.__version__ == VERSION
    # it is somebody else's code that runs here
    except Exception:
        is_ours = False
    if not is_ours:
        sys.exit(f"Error: {_sentence()}")
    from servd.__main__ import main as run

    run()


def _sentence() -> str:
    found = sys.modules.get("servd")
    place = getattr(found, "__file__", None) or next(
        iter(getattr(found, "__path__", [])), "nothing that can be imported"
    )
    return (
        f"`import servd` gives {place}, which is another package of that name, or a mixture of two (the one on PyPI called "
        "`servd` is a daemonizer): remove it (`pip uninstall servd`; a file or folder of your own: rename it), then install this "
        "one again: pip install --force-reinstall --no-deps servd-serve"
    )
