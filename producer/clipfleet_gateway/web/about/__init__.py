"""What a gateway says of itself, to anyone who reaches its port: health, metrics, the OpenAPI document."""
