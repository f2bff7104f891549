"""Ways to a machine: put a file there, run a command, get a file back."""
