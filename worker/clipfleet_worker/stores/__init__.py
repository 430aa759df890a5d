"""What jobs that fill a store ask of it while their chunks run; `finish/` commits them."""
