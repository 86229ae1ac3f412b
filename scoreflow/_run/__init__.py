"""The front door: times, the loop, runs."""
