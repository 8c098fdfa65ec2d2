"""Searchers: numbers in, numbers out.

A searcher proposes structures (`ask`) and learns from what the run tells it about them (`tell`). It never sees a
network: only the space, and the budget in closed form. `base` holds the contract and everything that all searchers
share (batches, novelty, saved state); each algorithm is one file; `registry` knows them by name.
"""
