"""Files that are written as a whole or not at all, remote ones, and the hub."""
