"""Experiments that turn a score into evidence: many runs that differ in one thing.

They lie above :mod:`mil.run`. Their results are files of a folder of their own, never of a run.
"""
