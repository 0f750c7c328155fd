"""Speed of every part of RAMBO on this machine: ``python -m tests.benchmarks --help``.

Each configuration (dimensions of a task, rows of data) runs in a process of its own, so that its
peak memory is its own. The data are Gaussian noise and the world model is not fitted: how long a
product takes does not depend on what is multiplied.

Beside every part the machine's rate of float32 matrix products is measured, before and after each
stretch of it and on as many threads: products of ``batch`` rows with a square layer, one rate for
the width of the agent's layers and one for the model's. A part's share of that rate is the time
in which the products alone could have been done, over the time taken; only products that are
needed count (:mod:`tests.benchmarks.flops`). Another program on the machine slows both alike.
"""
