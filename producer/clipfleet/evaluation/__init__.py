"""Evaluates models and outputs against known labels: what is read, which jobs run, what is computed from
their vectors and rows. Needs numpy, which the extra `[analysis]` installs.
"""
