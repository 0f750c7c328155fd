"""What `agents.cli` takes apart by name: `experiments` (sweep, results, select) and `data`.

`collection` gathers the transitions of `data make`; `terminal` is what is written to the screen.
"""
