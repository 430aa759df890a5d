"""What is published: built by `make build`, tried by `make test-build`."""
