"""From a name to a loaded model. One module of it is the only one that knows open_clip."""
