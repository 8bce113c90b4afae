"""The command line: flags, running, and what scripts and figures say; the only part that prints."""
