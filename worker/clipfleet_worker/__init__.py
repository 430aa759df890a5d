"""clipfleet_worker: what runs beside the GPU. It imports `clipfleet`, never the other way round."""
