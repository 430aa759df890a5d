"""DataComp's suite: its data sets, their metrics, the file of results."""
