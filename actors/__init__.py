"""Rollout actors: claim tasks, generate groups with the current policy, verify them, ship them."""
