"""What all processes agree on: messages, streams, settings, the staleness rule, weights.

Imports nothing of ours and no torch; ``redis`` is imported only by the stream files.
"""
