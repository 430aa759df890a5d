"""Bodies as they cross the wire: pydantic models that handlers parse and answer, and OpenAPI documents."""
