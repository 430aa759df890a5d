"""What runs on a GPU machine that reaches no network, and the archive that brings it there."""
