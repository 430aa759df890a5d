"""Which versions of the contract this program writes and reads.

A job carries the lowest version that can run it, so that older workers run what they can.
"""

SCHEMA_VERSION = 2
FIRST_WITH_DATA_FOLDER = 2  # rows in a folder of their own; `embedding` only where vectors are kept
READABLE_SCHEMA_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))
