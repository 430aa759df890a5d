"""Stores of vectors that are kept up to date, with versions: Lance datasets. Needs the extra `[store]`.

`dataset.py` is the only module that reaches Lance.
"""
