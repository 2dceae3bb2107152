"""What the suites share: doubles of real parts, servers, waiting, and readers that share no code with the product.

A suite is a folder of tests (``tests/*``, ``runtime/tests``) or of measurements (``bench``). What one suite alone uses stays
there. Modules here import nothing at their top that only some of the suites install, unless it is what they are about.
"""

from __future__ import annotations

from pathlib import Path

# The top of the repository.
TOP = Path(__file__).resolve().parents[2]
# Where the runtime's package is found.
RUNTIME = TOP / "runtime"
