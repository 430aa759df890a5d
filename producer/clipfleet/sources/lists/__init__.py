"""Sources that are files with one item per line or row; other sources are one folder up."""
