"""What this process runs on: Python, the packages that it has imported, the code that it was started with.

For work that is done in the caller's own process; nothing is imported to find out.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from mreg.registry.runs import code_state


def described() -> dict[str, Any]:
    """Python, the platform, and the version of every package of which something is imported."""
    imported = {name.partition(".")[0] for name in sys.modules}
    packages = {package for name, owners in packages_distributions().items() if name in imported for package in owners}
    return {
        **{package.lower(): version(package) for package in sorted(packages)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {''.join(platform.libc_ver())}".strip(),
    }


def code() -> dict[str, Any]:
    """The command line, and the state of the folder of the script, or of the working directory where there is none.

    `changes` is the diff itself. Raises TooMuchChanged.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    folder = Path(script).absolute().parent if script else Path.cwd()
    named = [Path(script).name] if script else []
    state = code_state.look(folder, named)
    return {"argv": sys.argv, "directory": str(folder), **state.described(), "changes": state.changes()}
