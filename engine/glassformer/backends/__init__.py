"""Array libraries the engine runs on."""
