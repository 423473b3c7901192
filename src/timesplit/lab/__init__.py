"""Starts the pieces of the lab, runs a scenario, and always stops what it started."""
