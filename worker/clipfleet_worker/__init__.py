"""Workers: claim chunks of jobs and label or embed their items.

The rooms, in the order of the path of a chunk:

1. `hints`: a hint arrives, or the puller works without one: the task boundary.
2. `chunk`: one chunk from claim to complete; `chunk/pipeline.py` is the map.
3. `fetch`: from the URI of an item to its bytes.
4. `decode`: from bytes to uint8 pixels.
5. `encode`: from pixels and prompts to features, on the device.
   `models`: from a name to a loaded model.
6. `score`: from features and label sets to labels.
7. `sinks`: from rows to exactly one part.
8. `finish`: the end of a job and the errands after it.

Around them: `process` (keeps one process healthy), `status` (health and metrics), `machine` (several
processes, and `up`), `assembly` (builds a worker), `doctor` (checks what a worker needs), `cli` (the
commands).
"""
