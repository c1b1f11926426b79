"""The chaos suite: the real actor, recycler and learner in real processes on a real server, while faults strike.

Only the two engines are toys (``chaos.engines``), so that a process starts in a second and a run does hundreds of
groups a second; what the learner "trains" is a list of uids, and that list is compared with what was issued.
``python -m chaos`` runs every row of the fault table, then the storm, and prints what came of it.
"""
