"""storagectl: the command line. It uses the public library only; nothing imports it."""
