"""Fitness: candidate -> Evaluation.

`base` holds the contract; each fitness is one file; `registry` knows them by name.
"""
