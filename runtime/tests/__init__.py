"""The runtime, by itself and inside real Dask."""
