"""The screen of `spark top`: rates from snapshots, panels, a frame that fits the terminal."""
