"""daskade's runtime inside Dask: runs steps, moves their data, captures their logs. It decides nothing.

This module stays free of imports: step processes load it too, and they must start quickly.
"""

__all__ = ["DIGEST", "PROTOCOL", "__version__"]

__version__ = "0.1.0"

#: Oldest and newest wire protocol that this runtime speaks.
PROTOCOL = (1, 1)

#: sha256 (hex) of the archive that this package was loaded from; empty when imported from a plain directory.
DIGEST = ""
