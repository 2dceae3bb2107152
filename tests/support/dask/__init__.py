"""Dask with the runtime in it, and the other sides that the runtime talks to."""
