"""One HTML page that shows what a job has done: the data, in one pass over the rows, and the page itself."""
