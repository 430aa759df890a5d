"""The commands of stores: the group `store`."""
