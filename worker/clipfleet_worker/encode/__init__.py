"""5. From pixels and prompts to features, by the one device thread. Knows no label; decodes no image."""
