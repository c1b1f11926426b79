"""What may be wrong with a run: one file per place, each a list of pure rules over a snapshot."""
