"""Generates text with a model: sampling, chat, answers to prepared questions, sample.py."""
