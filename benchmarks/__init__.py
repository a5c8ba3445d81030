"""Measurements behind the figures of the documentation; each file is a program."""
