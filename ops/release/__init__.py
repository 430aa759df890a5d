"""Check the release archives that `make build` makes: `make test-build`."""
