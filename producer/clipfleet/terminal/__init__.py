"""How both command lines talk to people. Parses no options."""
