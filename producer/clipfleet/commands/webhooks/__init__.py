"""The commands of webhooks: the group `webhooks`."""
