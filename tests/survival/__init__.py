"""Kills parts of running pipelines at named points and checks, from outside, what was promised.

Nothing in here imports daskade or its runtime: the journal is decoded by `journal`, what ran is read from a
ledger that the steps write themselves, and the verdict is `oracle`'s.
"""
