"""Repeats preparing, training and measuring over folds and prompts. No package imports it."""
