"""From recipe to weights: the pool of models, plans, executors and export.

Import from the modules of this package: `pool`, `plan`, `executor`, `export`. Importing the package itself stays light,
so nothing is re-exported here.
"""
