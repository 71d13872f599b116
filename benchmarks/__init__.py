"""Benchmarks: `python -m benchmarks NAME`, each a side-by-side run that records how it was made."""
