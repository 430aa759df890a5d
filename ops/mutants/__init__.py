"""Faults in the Lua scripts, one at a time: what the tests of the ledger find: `make lua-mutants`."""
