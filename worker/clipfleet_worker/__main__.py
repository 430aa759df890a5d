"""`python -m clipfleet_worker`, the same as `clipfleet-worker`."""

from clipfleet_worker.cli import main

if __name__ == "__main__":
    main()
