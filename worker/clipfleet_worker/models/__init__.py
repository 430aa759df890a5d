"""From a name to a loaded model. Only `open_clip_models` imports open_clip; `encode` runs the passes."""
