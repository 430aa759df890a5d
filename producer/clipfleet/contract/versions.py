"""Which versions of the contract this program writes and reads."""

SCHEMA_VERSION = 1
READABLE_SCHEMA_VERSIONS = (SCHEMA_VERSION, SCHEMA_VERSION - 1)
