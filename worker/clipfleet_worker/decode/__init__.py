"""4. From bytes to uint8 pixels. Knows no model and no network; forward passes belong to `encode`."""
