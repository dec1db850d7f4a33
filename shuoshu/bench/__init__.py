"""Measures speed against nanoGPT and the limit of the machine. No other package imports it."""
