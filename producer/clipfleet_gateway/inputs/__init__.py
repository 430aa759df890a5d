"""From bodies to items of a job, and from rows to answers, for requests and lines of a batch. No I/O."""
