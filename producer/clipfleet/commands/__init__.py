"""The commands of `clipfleet`, a module for each group; they parse and print, and do nothing themselves."""
