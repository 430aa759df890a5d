"""The commands that draw items to mark, choose and test thresholds by marks, and store marks."""
