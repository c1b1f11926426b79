"""The processes that train together: rank 0 runs the learner, the others do what it tells them.

Knows nothing of DeepSpeed: the engine is whatever the caller opens on every rank (``learner.engines``). An engine here
is *collective*: each of its methods is called on all ranks, in the same order and with the same arguments.
"""
