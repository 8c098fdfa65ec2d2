"""How many evaluations a searcher needs: every registered searcher on tables of trained networks and on landscapes.

`problems` says on what, `rows` which searchers, `play` is one run, `results` keeps finished runs, `tables` and `plots`
show them, `__main__` is the command.
"""
